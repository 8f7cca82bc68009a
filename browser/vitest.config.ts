import { defineConfig } from "vitest/config";

const hooks = { include: ["tests/*.test.tsx"], environment: "happy-dom" };

// The hooks run on both versions of React that they are for.
export default defineConfig({
  test: {
    projects: [
      { test: { name: "client", include: ["tests/*.test.ts"], environment: "node" } },
      { test: { name: "react19", ...hooks } },
      {
        resolve: { alias: [{ find: /^react(-dom)?(?=$|\/)/, replacement: "react$118" }] },
        test: { name: "react18", setupFiles: ["tests/react18.mjs"], ...hooks },
      },
    ],
  },
});
