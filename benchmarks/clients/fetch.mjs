// POST the JSON of the call on standard input twice, with Node's fetch.
import { readFileSync } from "node:fs";

const { url, headers, body } = JSON.parse(readFileSync(0, "utf8"));
for (let n = 0; n < 2; n++) {
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body,
  });
  await response.text();
}
