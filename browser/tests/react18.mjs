/** Whoever asks for React gets React 18, also the packages that vitest does not touch. */
import { registerHooks } from "node:module";

registerHooks({
  resolve: (name, context, next) => next(name.replace(/^react(-dom)?(?=$|\/)/, "react$118"), context),
});
