"""An Inngest server for this machine. It keeps its runs in memory: they end with the process.

The Inngest Dev Server replaces it without a change of the app: ``npx inngest-cli@latest dev``.
"""

from __future__ import annotations

import os

import uvicorn

from synap_realtime.integrations.inngest.local import Backoff, LocalInngest

if __name__ == "__main__":
    app = f"http://127.0.0.1:{os.environ['APP_PORT']}/api/inngest"
    # The pause between two attempts is long enough to see a retry on the page.
    server = LocalInngest([app], backoff=Backoff(first_s=2, longest_s=10))
    uvicorn.run(server, port=int(os.environ["INNGEST_PORT"]), log_level="warning")
