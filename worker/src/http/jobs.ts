/** The routes that read the records of jobs. See PROTOCOL.md, "Job state". */

import { authorize } from "../auth/authorization";
import { badRequest, notFound } from "../messages";
import { lengthOf } from "../protocol/codepoints";
import { MAX_NAME_LENGTH, STATUSES } from "../protocol/job_state";
import { problemWithKey } from "../protocol/rooms";
import { callRoom } from "../rooms/stub";
import type { JobPosition, JobQuery } from "../stores/jobs";
import { authenticateCounted, type RequestContext } from "./context";
import { parseLimit, readResponse } from "./reads";

/** `startedAt`, a slash, and the id of a record. */
const POSITION = /^([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)\/(.{1,200})$/su;

/** `GET /jobs/{requestId}`. */
export async function readJob(context: RequestContext, id: string): Promise<Response> {
  const problem = problemWithKey(id);
  if (problem !== undefined) throw badRequest("Invalid request id", `requestId: ${problem}`);
  const room = `request_${id}`;
  authorize(await authenticateCounted(context), "subscribe", room);
  const text = await callRoom(context.env, room, (stub) => stub.job(id));
  if (text === undefined) {
    throw notFound(
      "there is no record of a job of this request: nothing has reported about one yet, or the record has expired",
    );
  }
  return readResponse(context, text);
}

/** `GET /users/{id}/jobs`. */
export async function listJobs(context: RequestContext, id: string): Promise<Response> {
  const problem = problemWithKey(id);
  if (problem !== undefined) throw badRequest("Invalid user id", `id: ${problem}`);
  const room = `user_${id}`;
  authorize(await authenticateCounted(context), "subscribe", room);
  const query = parseQuery(context.query);
  return readResponse(context, await callRoom(context.env, room, (stub) => stub.jobs(query)));
}

/** @throws RequestError 400; it names the parameter. */
function parseQuery(query: Map<string, string>): JobQuery {
  const statuses = [...new Set(query.get("status")?.split(",") ?? [])];
  if (!statuses.every((status) => STATUSES.has(status))) {
    const known = [...STATUSES].sort().join(", ");
    throw badRequest("Invalid status", `status: expected some of ${known}, separated by commas`);
  }
  const type = query.get("type");
  if (type !== undefined && lengthOf(type) > MAX_NAME_LENGTH) {
    throw badRequest("Invalid type", `type: expected 1 to ${MAX_NAME_LENGTH} characters`);
  }
  const after = parsePosition(query.get("after"));
  const limit = parseLimit(query.get("limit"));
  return { limit, statuses, ...(type === undefined ? {} : { type }), ...(after === undefined ? {} : { after }) };
}

function parsePosition(text: string | undefined): JobPosition | undefined {
  if (text === undefined) return undefined;
  const match = POSITION.exec(text);
  if (match === null) throw badRequest("Invalid position", "after: expected the value of 'next' of another response");
  return { startedAt: match[1]!, jobId: match[2]! };
}
