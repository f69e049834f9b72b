// Figures for people; as the command line writes them.

export function duration(s) {
  if (!Number.isFinite(s) || s < 0) return '-';
  if (s < 1e-3) return `${(s * 1e6).toFixed(0)} us`;
  if (s < 1) return `${(s * 1e3).toFixed(1)} ms`;
  if (s < 60) return `${s < 10 ? s.toFixed(2) : s.toFixed(0)} s`;
  const two = (a, x, b, y) => (b ? `${a} ${x} ${b} ${y}` : `${a} ${x}`);
  const r = Math.round(s);
  if (r < 3600) return two(Math.floor(r / 60), 'min', r % 60, 's');
  if (r < 86400) return two(Math.floor(r / 3600), 'h', Math.floor((r % 3600) / 60), 'min');
  return two(Math.floor(r / 86400), 'd', Math.floor((r % 86400) / 3600), 'h');
}

export const count = (n) => (Number.isFinite(n) ? Math.round(n).toLocaleString('en-US') : '-');

export function scaled(n, units = ['', 'k', 'M', 'B', 'T'], base = 1000) {
  if (!Number.isFinite(n)) return '-';
  let i = 0;
  while (n >= base && i + 1 < units.length) { n /= base; i += 1; }
  return `${i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`.trim();
}

export const bytes = (n) => scaled(n, ['B', 'KiB', 'MiB', 'GiB', 'TiB'], 1024);
export const percent = (x) => (Number.isFinite(x) ? `${(100 * x).toFixed(x > 0.99 && x < 1 ? 2 : 1)}%` : '-');
export const figure = (x) => (x === null || !Number.isFinite(x) ? '-' : Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(2) : x.toPrecision(5));
export const time = (ms) => new Date(ms).toLocaleString();
export const ago = (ms) => `${duration(Math.max(0, (Date.now() - ms) / 1000))} ago`;
