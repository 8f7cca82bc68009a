/**
 * Print the minified, gzipped size of the client and the hooks; fail if it exceeds a limit: node scripts/size.mjs
 *
 * It is what the bundler of an application makes of them: Vite, and esbuild, whose output is larger than that of the
 * other bundlers. React is not counted. What a page loads by `import()`, only when it needs it, is counted by itself.
 */
import { gzipSync } from "node:zlib";
import { build as esbuild } from "esbuild";
import { build as vite } from "vite";

const LIMITS = {
  vite: { client: 7 * 1024, subscribe: 7 * 1024, hooks: 3 * 1024 },
  esbuild: { client: 7 * 1024, subscribe: 7 * 1024, hooks: 3160 },
};

/** Each returns the code of an entry module, without the modules that match `external`. */
const BUNDLERS = {
  vite: async (contents, external) => {
    const path = `${process.cwd()}/src/entry.ts`;
    const entry = { name: "entry", resolveId: (id) => (id === path ? id : null), load: (id) => (id === path ? contents : null) };
    const [{ output }] = await vite({
      configFile: false, logLevel: "silent", plugins: [entry],
      build: {
        // As a library, because an application has the helper that loads modules later once, whatever it uses.
        write: false, target: "es2022", lib: { entry: path, formats: ["es"] },
        rolldownOptions: { external, output: { codeSplitting: false, minify: true } },
      },
    });
    return output[0].code;
  },
  esbuild: async (contents, external) => {
    const outside = { name: "outside", setup: ({ onResolve }) => onResolve({ filter: external }, ({ path }) => ({ path, external: true })) };
    const { outputFiles } = await esbuild({
      stdin: { contents, resolveDir: "src", loader: "ts" },
      bundle: true, minify: true, write: false, format: "esm", target: "es2022", plugins: [outside],
    });
    return outputFiles[0].text;
  },
};
const REACT = /^react$/;
const REACT_AND_LATER = /^react$|\/(stream|shared)\.js$/;

for (const [bundler, bundle] of Object.entries(BUNDLERS)) {
  const weigh = async (contents, external = REACT_AND_LATER) => gzipSync(await bundle(contents, external), { level: 9 }).length;
  const index = 'export * from "./index.js"';
  const client = await weigh(index);
  const sizes = {
    client,
    subscribe: await weigh('export { subscribe } from "./index.js"'),
    hooks: (await weigh(`${index}; export * from "./react.js"`)) - client,
    "event streams and tabs, which are loaded when they are needed": (await weigh(index, REACT)) - client,
  };
  console.log(`${bundler}: ${Object.entries(sizes).map(([name, bytes]) => `${name}: ${bytes} bytes`).join("; ")}`);
  for (const [name, limit] of Object.entries(LIMITS[bundler])) {
    if (sizes[name] > limit) {
      console.error(`${bundler}: ${name}: ${sizes[name]} bytes exceed the limit of ${limit} bytes`);
      process.exitCode = 1;
    }
  }
}
