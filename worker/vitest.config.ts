import { cloudflareTest } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [
    cloudflareTest({
      wrangler: { configPath: "./wrangler.jsonc" },
      miniflare: { bindings: { TOKEN_SECRETS: "a-secret-that-everybody-may-know-0001", API_KEYS: "jobs=a-key-that-everybody-may-know-00000001" } },
    }),
  ],
  test: { include: ["tests/**/*.test.ts"] },
});
