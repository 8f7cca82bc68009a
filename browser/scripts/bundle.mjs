/** Bundle the client into one file, for pages without a build step: node scripts/bundle.mjs [FILE] */
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const browser = dirname(dirname(fileURLToPath(import.meta.url)));
const outfile = process.argv[2] ?? join(browser, "..", "synap_realtime", "templates", "common", "static", "synap-realtime.js");

await build({
  absWorkingDir: browser,
  stdin: { contents: 'export * from "./index.js"; export { JobTracker } from "./job.js";', resolveDir: "src", loader: "ts" },
  outfile,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "safari16"],
  banner: { js: "// @synap/realtime and @synap/realtime/job in one file. License: Apache-2.0." },
  define: { "process.env.NEXT_PUBLIC_REALTIME_URL": "undefined" },
  logLevel: "warning",
});
