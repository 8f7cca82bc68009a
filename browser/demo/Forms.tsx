import { useState, type FormEvent, type ReactNode } from "react";
import type { OpenTask } from "./tasks.js";
import type { Request } from "./Waiting.js";

interface Props {
  user: string;
  tasks: OpenTask[];
  onRequest: (request: Request) => void;
}

/** The app's own reason; a proxy's error page has none. */
async function reasonOf(response: Response): Promise<string> {
  const body = (await response.json().catch(() => undefined)) as { detail?: unknown } | undefined;
  return typeof body?.detail === "string" ? body.detail : `${response.status} ${response.statusText}`;
}

export function Forms({ user, tasks, onRequest }: Props) {
  const ask = async (title: string, about: string, path: string, body: object) => {
    const key = crypto.randomUUID();
    try {
      const response = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-User-Id": user },
        body: JSON.stringify(body),
      });
      if (!response.ok) throw new Error(await reasonOf(response));
      const answer = (await response.json()) as { requestId: string };
      onRequest({ key, title, about, requestId: answer.requestId });
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      onRequest({ key, title, about, problem: `Request failed: ${problem}` });
    }
  };
  const day = (fields: FormData, name: string) => (fields.get(name) as string) || null;

  return (
    <section aria-labelledby="ask">
      <h2 id="ask">Start a job</h2>
      <Form
        title="Report"
        onSend={(fields, trouble) => {
          const title = fields.get("title") as string;
          void ask("Report", title, "/api/reports", { title, trouble: trouble !== "" });
        }}
      >
        <label>
          Title <input name="title" defaultValue="The week" required />
        </label>
        <div className="buttons">
          <button>Write</button>
          <button name="trouble" value="yes">
            Write with two failures
          </button>
        </div>
      </Form>
      <Form
        title="Conversation"
        onSend={(fields, wish) => {
          const content = `${fields.get("content") as string}${wish && `\n${wish}`}`;
          void ask("Message", content, `/api/conversations/${user}/messages`, { content });
        }}
      >
        <label>
          Message <input name="content" defaultValue="What is next?" required />
        </label>
        <div className="buttons">
          <button>Send</button>
          <button name="wish" value="#long">
            Ask for a long reply
          </button>
        </div>
      </Form>
      <Form
        title="Note"
        onSend={(fields, trouble) => {
          const content = fields.get("content") as string;
          const about = content.split("\n")[0]!.replace(/^#+\s*/, "");
          void ask("Note", about, "/api/notes", { content: trouble ? `${content}\n${trouble}` : content });
        }}
      >
        <label>
          Content <textarea name="content" rows={2} defaultValue={"# Milk\nand bread"} />
        </label>
        <div className="buttons">
          <button>Create</button>
          <button name="trouble" value="#fail-twice">
            Fail twice, then succeed
          </button>
          <button name="trouble" value="#fail-always">
            Fail permanently
          </button>
        </div>
      </Form>
      <Form
        title="Task"
        onSend={(fields) => {
          const title = fields.get("title") as string;
          void ask("Task", title, "/api/tasks", { title, priority: fields.get("priority") });
        }}
      >
        <div className="pair">
          <label>
            Title <input name="title" defaultValue="Buy milk" required />
          </label>
          <label>
            Priority
            <select name="priority" defaultValue="medium">
              <option>low</option>
              <option>medium</option>
              <option>high</option>
            </select>
          </label>
        </div>
        <button>Create</button>
      </Form>
      <Form
        title="Complete a task"
        onSend={(fields) => {
          const id = fields.get("id") as string;
          const about = tasks.find((task) => task.id === id)?.title ?? id;
          void ask("Complete", about, `/api/tasks/${encodeURIComponent(id)}/complete`, {});
        }}
      >
        <label>
          Task
          <select name="id" disabled={tasks.length === 0}>
            {tasks.length === 0 && <option value="">create a task first</option>}
            {tasks.map(({ id, title }) => (
              <option key={id} value={id}>
                {title}
              </option>
            ))}
          </select>
        </label>
        <button disabled={tasks.length === 0}>Complete</button>
      </Form>
      <Form
        title="Project"
        onSend={(fields) => {
          const title = fields.get("title") as string;
          const dates = { start_date: day(fields, "start"), end_date: day(fields, "end") };
          void ask("Project", title, "/api/projects", { title, ...dates });
        }}
      >
        <label>
          Title <input name="title" defaultValue="House" required />
        </label>
        <div className="pair">
          <label>
            From <input name="start" type="date" defaultValue="2026-01-01" />
          </label>
          <label>
            To <input name="end" type="date" defaultValue="2026-12-31" />
          </label>
        </div>
        <button>Create</button>
      </Form>
    </section>
  );
}

interface FormProps {
  title: string;
  /** `choice` is the value of the button that was pressed. */
  onSend: (fields: FormData, choice: string) => void;
  children: ReactNode;
}

function Form({ title, onSend, children }: FormProps) {
  const [isOpen, setOpen] = useState(true);
  const send = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const { submitter } = event.nativeEvent as SubmitEvent;
    onSend(new FormData(event.currentTarget), submitter?.getAttribute("value") ?? "");
  };
  return (
    <form onSubmit={send} aria-label={title}>
      <h3>
        <button type="button" className="quiet" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          {title}
        </button>
      </h3>
      {isOpen && children}
    </form>
  );
}
