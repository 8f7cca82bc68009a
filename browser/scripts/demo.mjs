/** Build the page of `synap-realtime demo` into the folder that the package has: node scripts/demo.mjs [FOLDER] */
import { copyFile, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const browser = dirname(dirname(fileURLToPath(import.meta.url)));
const demo = join(browser, "demo");
const out = process.argv[2] ?? join(browser, "..", "synap_realtime", "demo", "page");

await mkdir(out, { recursive: true });
await build({
  absWorkingDir: browser,
  entryPoints: { app: join(demo, "main.tsx") },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "safari16"],
  jsx: "automatic",
  legalComments: "linked",
  define: { "process.env.NODE_ENV": '"production"', "process.env.NEXT_PUBLIC_REALTIME_URL": "undefined" },
  alias: { "@synap/realtime": "./src/index.ts", "@synap/realtime/react": "./src/react.ts" },
  nodePaths: [join(browser, "node_modules")],
  logLevel: "warning",
});
await copyFile(join(demo, "index.html"), join(out, "index.html"));
