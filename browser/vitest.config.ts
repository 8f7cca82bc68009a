import { defineConfig } from "vitest/config";

// The hooks run on both versions of React that they are for.
export default defineConfig({
  test: {
    projects: [
      { test: { name: "client", include: ["tests/*.test.ts"], environment: "node" } },
      { test: { name: "react19", include: ["tests/*.test.tsx"], environment: "happy-dom" } },
      {
        resolve: {
          alias: [
            { find: /^react-dom($|\/)/, replacement: "react-dom18$1" },
            { find: /^react($|\/)/, replacement: "react18$1" },
          ],
        },
        test: {
          name: "react18",
          include: ["tests/*.test.tsx"],
          environment: "happy-dom",
          // Else it would bring the React that it finds beside it.
          server: { deps: { inline: ["@testing-library/react", "react-dom18"] } },
        },
      },
    ],
  },
});
