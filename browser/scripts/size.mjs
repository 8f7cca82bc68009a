/**
 * Print the minified, gzipped size of the client and the hooks; fail if it exceeds a limit: node scripts/size.mjs
 */
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMITS = { client: 7 * 1024, subscribe: 5.5 * 1024, hooks: 2 * 1024 };

/** The gzipped size of what a page loads at first, and of what it loads later: only if it needs it. */
async function weigh(contents) {
  const { outputFiles, metafile } = await build({
    stdin: { contents, resolveDir: "src", loader: "ts", sourcefile: "entry.ts" },
    bundle: true, minify: true, write: false, format: "esm", target: "es2022", external: ["react"],
    splitting: true, outdir: "out", metafile: true,
  });
  const loaded = new Set(["out/stdin.js"]);
  for (const name of loaded) {
    for (const { path, kind } of metafile.outputs[name].imports) if (kind === "import-statement" && path in metafile.outputs) loaded.add(path);
  }
  const isFirst = ({ path }) => [...loaded].some((name) => path.endsWith(name));
  const gzipped = (files) => gzipSync(Buffer.concat(files.map(({ contents }) => contents)), { level: 9 }).length;
  return { first: gzipped(outputFiles.filter(isFirst)), later: gzipped(outputFiles.filter((file) => !isFirst(file))) };
}

const client = await weigh('export * from "./index.js"');
const alone = await weigh('export { subscribe } from "./index.js"');
const both = await weigh('export * from "./index.js"; export * from "./react.js"');
const sizes = { client: client.first, subscribe: alone.first, hooks: both.first - client.first };
console.log(
  `client: ${sizes.client} bytes; subscribe() alone: ${sizes.subscribe} bytes; hooks: ${sizes.hooks} additional bytes; ` +
    `loaded only if needed (event streams, tabs): ${client.later} bytes`,
);
for (const [name, limit] of Object.entries(LIMITS)) {
  if (sizes[name] > limit) {
    console.error(`${name}: ${sizes[name]} bytes exceed the limit of ${limit} bytes`);
    process.exitCode = 1;
  }
}
