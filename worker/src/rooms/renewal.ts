/** Renewal of the token of an open connection. See PROTOCOL.md, "Subscribing". */

import { authenticate, authorize } from "../auth/authorization";
import { registerConnection, registryOf } from "../auth/registry";
import { RequestError } from "../messages";
import { CLOSE_REASONS, CloseCode } from "../protocol/control";
import type { Settings } from "../settings";
import type { Connection } from "./connection";
import type { Deadlines } from "./deadlines";
import { renewed, warnBeforeExpiry } from "./credential";
import type { Sessions } from "./sessions";

export class Renewals {
  /** The last renewal of each connection: an earlier one that is still running must not replace it. */
  readonly #last = new WeakMap<Connection, symbol>();

  constructor(
    private readonly ctx: DurableObjectState,
    private readonly env: Env,
    private readonly settings: Settings,
    private readonly room: string,
    private readonly sessions: Sessions,
    private readonly deadlines: Deadlines,
  ) {}

  /** Replace the token of a connection. An invalid new token closes the connection. */
  async renew(connection: Connection, token: string): Promise<void> {
    const { attachment } = connection;
    const renewal = Symbol("renewal");
    this.#last.set(connection, renewal);
    const isCurrent = () => attachment.state.name !== "closed" && this.#last.get(connection) === renewal;
    const close = (code: CloseCode, reason?: string) => {
      if (isCurrent()) this.sessions.close(connection, code, reason);
    };
    try {
      const claims = await authenticate(this.settings, token, undefined);
      if (claims.user !== connection.user) return close(CloseCode.FORBIDDEN, "the new token is another user's");
      authorize(claims, "subscribe", this.room);
      if (attachment.wantsPresence) authorize(claims, "presence", this.room);
      // The connection already counts for the user, so there is no limit.
      const verdict = await registerConnection(this.env, claims, attachment.id, this.room, 0);
      if (verdict !== "ok") return close(CloseCode.UNAUTHORIZED, CLOSE_REASONS[CloseCode.REVOKED]);
      if (this.sessions.isRevoked(claims)) return close(CloseCode.REVOKED);
      if (!isCurrent()) return;
      const { credential } = attachment;
      if (credential.tokenId !== undefined && credential.tokenId !== claims.tokenId) {
        const unregistered = registryOf(this.env, "token", credential.tokenId).unregister([attachment.id]);
        this.ctx.waitUntil(unregistered.catch(() => undefined));
      }
      attachment.credential = renewed(credential, claims);
      connection.save();
      warnBeforeExpiry(connection);
      this.deadlines.schedule(this.deadlines.next(connection));
    } catch (error) {
      // If the new token cannot be verified now, the old one is valid until it expires.
      if (!(error instanceof RequestError)) return;
      const { details } = error.body;
      if (error.status === 403) close(CloseCode.FORBIDDEN, details);
      else if (error.status === 401) close(CloseCode.UNAUTHORIZED, details);
    }
  }
}
