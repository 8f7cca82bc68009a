/** The little of Node that the tests use. */
declare module "node:vm" {
  export function runInNewContext(code: string, sandbox: object): unknown;
}
