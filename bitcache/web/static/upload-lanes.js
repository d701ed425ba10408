// Several things at a time: lanes that take jobs from one list, and a gate that narrows where the line is slow.

// Runs `work(job, signal)` for every job, `count` at a time. After a failure the other lanes are stopped by `signal`
// and waited for: when this throws, nothing is going on any more.
export async function inLanes(count, jobs, work) {
  const stop = new AbortController();
  // One iterator for all lanes: each job is taken once.
  const queue = jobs[Symbol.iterator]();
  const lane = async () => {
    for (let next = queue.next(); !next.done; next = queue.next()) {
      stop.signal.throwIfAborted();
      await work(next.value, stop.signal);
    }
  };
  const lanes = Array.from({ length: count }, lane);
  try {
    await Promise.all(lanes);
  } catch (failure) {
    stop.abort();
    await Promise.allSettled(lanes);
    throw failure;
  }
}

// Lets so many through at a time; `narrow()` makes that one fewer, down to one.
export class Gate {
  #free;
  #debt = 0;
  #waiting = [];

  constructor(width) {
    this.width = width;
    this.#free = width;
  }

  narrow() {
    if (this.width === 1) return;
    this.width -= 1;
    // Who leaves next keeps the place closed.
    this.#debt += 1;
  }

  async through(work) {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      if (this.#debt > 0) this.#debt -= 1;
      else if (this.#waiting.length) this.#waiting.shift()();
      else this.#free += 1;
    }
  }
}
