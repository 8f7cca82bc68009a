import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App.js";
import "./app.css";

const { realtimeUrl } = (await (await fetch("/api/config")).json()) as { realtimeUrl: string };
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App realtimeUrl={realtimeUrl} />
  </StrictMode>,
);
