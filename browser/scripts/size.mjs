/**
 * Print the minified, gzipped size of the client and the hooks; fail if it exceeds a limit: node scripts/size.mjs
 *
 * What a page loads by `import()`, only when it needs it, is counted by itself.
 */
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** The hooks are to be brought to 3 KiB; until then, they may not grow. */
const LIMITS = { client: 7 * 1024, subscribe: 7 * 1024, hooks: 3.8 * 1024 };

const later = { name: "later", setup: ({ onResolve }) => onResolve({ filter: /^\./ }, ({ kind, path }) => (kind === "dynamic-import" ? { path, external: true } : undefined)) };

async function weigh(contents, ...plugins) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: "src", loader: "ts" },
    bundle: true, minify: true, write: false, format: "esm", target: "es2022", external: ["react"], plugins,
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

const index = 'export * from "./index.js"';
const client = await weigh(index, later);
const sizes = {
  client,
  subscribe: await weigh('export { subscribe } from "./index.js"', later),
  hooks: (await weigh(`${index}; export * from "./react.js"`, later)) - client,
  "event streams and tabs, which are loaded when they are needed": (await weigh(index)) - client,
};
console.log(Object.entries(sizes).map(([name, bytes]) => `${name}: ${bytes} bytes`).join("; "));
for (const [name, limit] of Object.entries(LIMITS)) {
  if (sizes[name] > limit) {
    console.error(`${name}: ${sizes[name]} bytes exceed the limit of ${limit} bytes`);
    process.exitCode = 1;
  }
}
