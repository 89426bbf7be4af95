/** The page's side of the worker. */

import type { Calls, Reply, Stage } from "./protocol";

export type OnProgress = (stage: Stage, loaded: number, total: number) => void;

export class Engine {
  private readonly worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  private readonly waiting = new Map<number, { done: (value: any) => void; failed: (error: Error) => void; progress?: OnProgress }>();
  private number = 0;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<Reply>) => this.receive(data);
    this.worker.onerror = (event) => this.fail(new Error(event.message || "The engine of this page did not start."));
  }

  open(source: Calls["open"]["args"][0], progress: OnProgress): Promise<Calls["open"]["result"]> {
    return this.call("open", [source], progress);
  }

  /** Call the worker. Fails with an error whose message is meant for the user. */
  call<Name extends keyof Calls>(name: Name, args: Calls[Name]["args"], progress?: OnProgress): Promise<Calls[Name]["result"]> {
    const id = ++this.number;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed, progress });
      this.worker.postMessage({ id, name, args });
    });
  }

  private receive(reply: Reply): void {
    const call = this.waiting.get(reply.id);
    if (call === undefined) return;
    if ("stage" in reply) {
      call.progress?.(reply.stage, reply.loaded, reply.total);
      return;
    }
    this.waiting.delete(reply.id);
    if ("error" in reply) call.failed(new Error(reply.error));
    else call.done(reply.result);
  }

  private fail(error: Error): void {
    for (const call of this.waiting.values()) call.failed(error);
    this.waiting.clear();
  }
}
