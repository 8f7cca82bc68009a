// The page. It starts jobs, and shows how they move: after a reload, too.
import { get, post } from "./requests.js";
import { JobTracker, subscribe } from "./synap-realtime.js";

const form = document.querySelector("form");
const problem = document.querySelector("#problem");
const started = JSON.parse(sessionStorage.getItem("started") ?? "[]");
const { realtimeUrl } = await get("/api/config");

// Called before each connection, and before the token expires. post() throws if the answer is an error, so
// that an error page never becomes a token.
const token = async () => (await post("/api/realtime-token")).token;

function stateText({ status, progress, label, attempt, maxAttempts, error }) {
  switch (status) {
    case "idle":
      return "queued";
    case "pending":
      return [progress === undefined ? "running" : `${Math.round(progress * 100)} %`, label].filter(Boolean).join(" · ");
    case "retrying":
      return `${error} Attempt ${attempt} of ${maxAttempts} follows.`;
    case "success":
      return "done";
    default:
      return error ?? status;
  }
}

function follow({ requestId, title }) {
  const card = document.querySelector("template").content.cloneNode(true).firstElementChild;
  const [state, bar, text] = [".state", "progress", ".text"].map((selector) => card.querySelector(selector));
  card.querySelector("b").textContent = title;
  document.querySelector("#jobs").prepend(card);

  const job = new JobTracker();
  const show = () => {
    state.textContent = stateText(job.state);
    text.textContent = job.state.text;
    bar.hidden = job.isFinished;
    if (job.state.progress === undefined) bar.removeAttribute("value");
    else bar.value = job.state.progress;
  };
  show();
  const subscription = subscribe(`request_${requestId}`, {
    url: realtimeUrl,
    token,
    after: "earliest", // everything since the job began, however late the page subscribes
    onNotification: (notification) => {
      job.apply(notification);
      show();
      if (job.isFinished) subscription.close();
    },
    onStateChange: ({ status, error }) => {
      if (status === "closed" && error) state.textContent = `not connected: ${error.message}`;
    },
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = new FormData(form);
  const title = fields.get("title");
  try {
    const { requestId } = await post("/api/reports", { title, failures: fields.has("failures") ? 2 : 0 });
    started.push({ requestId, title });
    sessionStorage.setItem("started", JSON.stringify(started.slice(-10)));
    problem.textContent = "";
    follow({ requestId, title });
  } catch (error) {
    problem.textContent = `The report was not started: ${error.message}`;
  }
});

started.forEach(follow);
form.querySelector("button").disabled = false; // until here, a click would reload the page
