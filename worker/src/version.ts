/** The package's version; tests/worker/test_source.py checks it. */
export const VERSION = "0.1.0";
