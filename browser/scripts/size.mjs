/** Print the minified, gzipped size of the client and the hooks; fail if it exceeds a limit: node scripts/size.mjs */
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMITS = { client: 7 * 1024, subscribe: 5.5 * 1024, hooks: 2 * 1024 };

async function weigh(code) {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: "src", loader: "ts" },
    bundle: true, minify: true, write: false, format: "esm", target: "es2022", external: ["react"],
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

const client = await weigh('export * from "./index.js"');
const alone = await weigh('export { subscribe } from "./index.js"');
const both = await weigh('export * from "./index.js"; export * from "./react.js"');
const sizes = { client, subscribe: alone, hooks: both - client };
console.log(`client: ${client} bytes; subscribe() alone: ${alone} bytes; hooks: ${sizes.hooks} additional bytes`);
for (const [name, limit] of Object.entries(LIMITS)) {
  if (sizes[name] > limit) {
    console.error(`${name}: ${sizes[name]} bytes exceed the limit of ${limit} bytes`);
    process.exitCode = 1;
  }
}
