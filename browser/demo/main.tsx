import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App.js";
import "./app.css";

const response = await fetch("/api/config");
if (!response.ok) throw new Error(`no configuration: ${response.status} ${response.statusText}`);
const { realtimeUrl } = (await response.json()) as { realtimeUrl: string };
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App realtimeUrl={realtimeUrl} />
  </StrictMode>,
);
