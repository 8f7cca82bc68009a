/** The package's version; tests/worker/test_source.py keeps it so. */
export const VERSION = "0.1.0";
