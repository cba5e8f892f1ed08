// The whole cache at a glance: a column for each token, a row for each layer, bright where it is held.

export function drawMap(canvas, lens, selected) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const style = getComputedStyle(canvas);
  const paper = canvas.getContext("2d");
  paper.fillStyle = style.color;
  const [across, down] = [canvas.width / lens.length, canvas.height / lens.layers];
  for (let layer = 0; layer < lens.layers; layer++) {
    const [top, bottom] = [Math.floor(layer * down), Math.ceil((layer + 1) * down)];
    for (let at = 0; at < lens.length; at++) {
      const count = lens.inLayer(layer, at);
      if (!count) continue;
      paper.globalAlpha = 0.15 + 0.85 * (count / lens.heads);
      const left = Math.floor(at * across);
      paper.fillRect(left, top, Math.max(1, Math.floor((at + 1) * across) - left), bottom - top);
    }
  }
  paper.globalAlpha = 1;
  if (selected !== null && selected < lens.length) {
    paper.fillStyle = style.getPropertyValue("--ink");
    paper.fillRect(Math.floor((selected + 0.5) * across) - ratio, 0, 2 * ratio, canvas.height);
  }
}

export function tokenAtPoint(canvas, lens, event) {
  const share = event.offsetX / canvas.clientWidth;
  return Math.min(lens.length - 1, Math.max(0, Math.floor(share * lens.length)));
}
