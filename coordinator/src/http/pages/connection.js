// Requests with the user's token, and the one stream of a tab, which goes on after a break where it was.

const KEY = 'toroid-token';

// `toroid dashboard` hands its key over behind the #, which no browser sends to anybody.
const handed = new URLSearchParams(location.hash.slice(1)).get('token');
if (handed) {
  sessionStorage.setItem(KEY, handed);
  history.replaceState(null, '', location.pathname + location.search);
}

export const setToken = (token) => sessionStorage.setItem(KEY, token.trim());

function headers() {
  const token = sessionStorage.getItem(KEY);
  return token ? { authorization: `Bearer ${token}` } : {};
}

export class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

async function checked(response) {
  if (response.ok) return response;
  let text = `${response.status} ${response.statusText}`;
  try { text = (await response.json()).error ?? text; } catch { /* no JSON: its status says what there is to say */ }
  throw new Refused(response.status, text);
}

export async function get(path) {
  return (await checked(await fetch(path, { headers: headers() }))).json();
}

export async function post(path) {
  return (await checked(await fetch(path, { method: 'POST', headers: headers() }))).json();
}

// Calls `on[event](data)` for each event, `on.state(text)` when the connection changes, `on.refused(error)` where credentials are at fault.
export class Stream {
  constructor(on) { this.on = on; this.job = ''; this.from = 0; this.run = 0; }

  // Looks at another job, its steps from `from` on.
  open(job, from) {
    this.job = job;
    this.from = from;
    this.stop();
    this.#keep(++this.run);
  }

  stop() { this.run += 1; this.abort?.abort(); }

  async #keep(run) {
    let wait = 250;
    while (run === this.run) {
      this.abort = new AbortController();
      let why = 'the coordinator ended the stream';
      try {
        const query = `job=${encodeURIComponent(this.job)}&from=${this.from}`;
        const response = await checked(await fetch(`/api/stream?${query}`, { headers: headers(), signal: this.abort.signal }));
        this.on.state('live');
        wait = 250;
        why = (await this.#read(response, run)) ?? why;
      } catch (error) {
        if (run !== this.run) return;
        if (error.status === 401 || error.status === 403) { this.on.refused(error); return; }
        if (error.status === 404) { this.on.gone(error); return; }
        why = error.message;
      }
      if (run !== this.run) return;
      this.on.state(`connects again: ${why}`);
      await new Promise((done) => setTimeout(done, wait));
      wait = Math.min(wait * 2, 5000);
    }
  }

  async #read(response, run) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done || run !== this.run) return null;
      rest += value;
      let end;
      while ((end = rest.indexOf('\n\n')) >= 0) {
        const event = { event: 'message', data: '' };
        for (const line of rest.slice(0, end).split('\n')) {
          const at = line.indexOf(':');
          if (at > 0) event[line.slice(0, at)] = line.slice(at + 1).replace(/^ /, '');
        }
        rest = rest.slice(end + 2);
        if (event.id) this.from = Number(event.id);
        if (event.event === 'ended') return event.data;
        if (event.data) this.on[event.event]?.(JSON.parse(event.data));
      }
    }
  }
}
