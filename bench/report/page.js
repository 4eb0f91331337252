// The report's page with scripts: tables sort, and the cases are filtered, drawn, compared, linked to and copied.
// Everything works on the block of JSON beside the table of cases; sections/table.py writes it. In each of its lists
// there is one value a case: columns[].places (into words), numbers.*, lines.places, runs, keys. Texts of results reach
// the page as text alone (textContent), and what an address asks for is taken only where the page offers it.
"use strict";
(() => {
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  };

  // ---- numbers

  const UNITS = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, s: 1, ms: 1e-3, "µs": 1e-6, ns: 1e-9 };
  const digits = (value) => Math.abs(value) >= 1000
    ? value.toLocaleString("en-US", { maximumSignificantDigits: 3 })
    : value.toLocaleString("en-US", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
  const scaled = (value, units, print) => {
    const unit = units.find((name) => Math.abs(value) >= UNITS[name] * 0.9995) ?? units.at(-1);
    return `${print(value / UNITS[unit])} ${unit}`;
  };
  const print = (value, unit, show = digits) => {
    if (unit === "bytes") return scaled(value, ["TiB", "GiB", "MiB", "KiB", "B"], show);
    if (unit === "seconds") return scaled(value, ["s", "ms", "µs", "ns"], show);
    return show(value) + { rate: " samples/s", joules: " J" }[unit];
  };
  const tick = (value) => value.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 4 });

  // The number at the head of a cell, in its unit: `101,000 (87,700 to 117,000)`, `15.6 MiB`, `-37.6 %`; of a date, a
  // version or a hash there is none.
  const quantity = (text) => {
    const found = /^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?![\w.:-])\s*([A-Za-zµ]*)/i.exec(text.trim());
    return found ? Number(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1) : NaN;
  };
  // Numbers by size, others by their text; what is missing comes last in either direction.
  const compare = (one, other, sign) => {
    const missing = (value) => value === null || value === "" || value === "–";
    if (missing(one) || missing(other)) return missing(one) - missing(other);
    const [first, second] = [one, other].map((value) => (typeof value === "number" ? value : quantity(value)));
    if (!Number.isNaN(first) && !Number.isNaN(second)) return sign * (first - second);
    return sign * String(one).localeCompare(String(other), "en", { numeric: true });
  };

  // ---- tables that stand in the page

  const header = (cell, direction, click) => {
    cell.replaceChildren(make("button", { type: "button", class: "sort", onclick: click }, cell.textContent));
    if (direction) cell.setAttribute("aria-sort", direction);
    else cell.removeAttribute("aria-sort");
  };
  for (const table of document.querySelectorAll("main table")) {
    const titles = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    if (body.rows.length < 2 || titles.some((title) => !title.textContent.trim())) continue;
    titles.forEach((title, place) => {
      header(title, "", () => {
        const sign = title.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        titles.forEach((other) => other.removeAttribute("aria-sort"));
        title.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const text = (row) => row.cells[place].textContent;
        body.append(...[...body.rows].sort((one, other) => compare(text(one), text(other), sign)));
      });
    });
  }

  const block = document.getElementById("cases-data");
  if (!block) return;

  // ---- the cases

  const data = JSON.parse(block.textContent);
  const { numbers, keys, runs, lines, quantities } = data;
  const columns = data.columns.filter((column) => !column.hidden);
  const named = new Map(data.columns.map((column) => [column.name, column]));
  const cases = keys.map((_, place) => place);
  const cell = (column, place) => column.words[column.places[place]];
  const line = (place) => lines.words[lines.places[place]];
  const lineKey = (name) => keys[lines.places.indexOf(lines.words.indexOf(name))]; // its first case's
  const title = (place) => `${line(place)}, batch ${cell(named.get("batch_size"), place)}`;
  const filters = data.filters.map((name) => named.get(name)).filter((column) => column && column.words.length > 1);
  const texts = cases.map((place) => data.columns.map((column) => cell(column, place)).join(" ").toLowerCase());
  const CELLS = 100; // rows of the table until all are asked for
  const LINES = 8; // of the chart until others are chosen
  const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
  const DASHES = [[], [8, 4], [2, 3], [9, 3, 2, 3]];

  // ---- the view, and its address

  const fresh = () => ({
    q: "", sort: "", y: quantities[0]?.name ?? "", x: "log", scale: "log", lines: null, pin: [], all: false,
    filters: Object.fromEntries(filters.map((column) => [column.name, ""])),
  });
  let view = fresh();
  let current = null; // the case that the chart points at
  const toAddress = () => {
    const asked = new URLSearchParams();
    const standard = fresh();
    for (const name of ["q", "sort", "y", "x", "scale"]) if (view[name] !== standard[name]) asked.set(name, view[name]);
    for (const [name, value] of Object.entries(view.filters)) if (value) asked.set(name, value);
    if (view.lines) asked.set("lines", view.lines.map(lineKey).join("."));
    if (view.pin.length) asked.set("pin", view.pin.map((place) => keys[place]).join("."));
    if (view.all) asked.set("all", "1");
    return asked.size ? `#${asked}` : location.pathname + location.search;
  };
  const fromAddress = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const one = (name, allowed, otherwise) => (allowed.includes(asked.get(name)) ? asked.get(name) : otherwise);
    const parts = (name) => (asked.get(name) ?? "").split(".").filter(Boolean);
    view = fresh();
    view.q = (asked.get("q") ?? "").slice(0, 200);
    view.sort = one("sort", columns.flatMap(({ name }) => [name, `-${name}`]), "");
    view.y = one("y", quantities.map(({ name }) => name), view.y);
    view.x = one("x", ["log", "linear"], "log");
    view.scale = one("scale", ["log", "linear"], "log");
    for (const column of filters) view.filters[column.name] = one(column.name, column.words, "");
    if (asked.has("lines")) view.lines = lines.words.filter((name) => parts("lines").includes(lineKey(name)));
    view.pin = parts("pin").map((key) => keys.indexOf(key)).filter((place) => place >= 0).slice(0, 2);
    view.all = asked.get("all") === "1";
  };

  // ---- what is shown

  const filtered = () => {
    const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = cases.filter((place) =>
      filters.every((column) => !view.filters[column.name] || cell(column, place) === view.filters[column.name])
      && words.every((word) => texts[place].includes(word)));
    if (!view.sort) return kept;
    const column = named.get(view.sort.replace(/^-/, ""));
    const value = (place) => (numbers[column.name] ? numbers[column.name][place] : cell(column, place));
    return kept.sort((one, other) => compare(value(one), value(other), view.sort.startsWith("-") ? -1 : 1) || one - other);
  };
  const csv = (rows) => {
    const written = (value) => {
      const text = value === null ? "" : String(value);
      const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
      return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    const said = data.columns.filter(({ name }) => !numbers[name]);
    const head = [...said.map(({ name }) => name), ...Object.keys(numbers), "run_keys"];
    const body = rows.map((place) => [
      ...said.map((column) => (cell(column, place) === "–" ? null : cell(column, place))),
      ...Object.values(numbers).map((values) => values[place]), runs[place]]);
    return [head, ...body].map((row) => row.map(written).join(",")).join("\n") + "\n";
  };

  // ---- controls

  const search = make("input", { type: "search", id: "find", autocomplete: "off", oninput: () => change({ q: search.value }) });
  const select = (id, label, options, changed) => {
    const list = make("select", { id, onchange: () => changed(list.value) },
      ...options.map(([value, text]) => make("option", { value }, text)));
    return [make("label", { for: id }, label, list), list];
  };
  const chosen = Object.fromEntries(filters.map((column) => [column.name, select(
    `only-${column.name}`, column.title, [["", "all"], ...[...column.words].sort().map((word) => [word, word])],
    (value) => change({ filters: { ...view.filters, [column.name]: value } }))]));
  const axis = [["log", "logarithmic"], ["linear", "linear"]];
  const [yLabel, yList] = select("quantity", "curves of", quantities.map(({ name, title }) => [name, title]), (y) => change({ y }));
  const [xLabel, xList] = select("x-axis", "batch axis", axis, (x) => change({ x }));
  const [sLabel, sList] = select("y-axis", "value axis", axis, (scale) => change({ scale }));
  const button = (text, onclick, attributes = {}) => make("button", { type: "button", onclick, ...attributes }, text);
  const count = make("p", { role: "status", id: "count" });
  const said = make("p", { role: "status", id: "copied" });
  const readout = make("p", { role: "status", id: "readout" });
  const chart = make("div", {
    id: "chart", tabindex: "0", role: "application", "aria-describedby": "keys-of-chart",
    onkeydown: (event) => walk(event), onfocus: () => current ?? point(points()[0]),
    onpointermove: (event) => point(nearest(event)), onclick: (event) => press(nearest(event)),
  });
  const legend = make("div", { class: "legend", role: "group", "aria-label": "Lines shown" });
  const pinned = make("div", { id: "pinned" });
  const head = make("tr");
  const body = make("tbody");
  const table = make("table", { class: columns.length > 10 ? "wide" : "" }, make("thead", {}, head), body);
  const more = button("", () => change({ all: !view.all }));
  const copy = async (text, done) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not allowed here: the older way
      const area = make("textarea", { "aria-label": "copied text" });
      area.value = text;
      explorer.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    said.textContent = done;
  };
  const explorer = make("div", { id: "explorer" },
    make("div", { class: "controls", role: "search" },
      make("label", { for: "find" }, "find text", search), ...filters.map((column) => chosen[column.name][0]),
      button("Reset", () => { view = fresh(); update(); })),
    count,
    make("div", { class: "controls", role: "group", "aria-label": "Curves" }, yLabel, xLabel, sLabel),
    legend, chart,
    make("p", { id: "keys-of-chart", class: "hint" },
      "Point at a curve, or focus the chart and use the arrow keys; a click or Enter pins the case."),
    readout, pinned,
    make("div", { class: "controls" },
      button("Copy rows as CSV", () => {
        const rows = filtered();
        copy(csv(rows), `${rows.length} rows copied, with all digits of bytes and six of other numbers.`);
      }, { id: "copy-rows" }),
      button("Copy a link to this view", () => copy(location.href, "Link copied."), { id: "copy-link" })),
    said,
    make("div", { class: "scroll cases", tabindex: "0", role: "region", "aria-label": "Cases" }, table),
    make("div", { class: "controls" }, more));
  const fallback = document.getElementById("cases");
  fallback.before(explorer);
  fallback.classList.add("replaced");

  // ---- the chart

  let plot = null;
  let drawn = []; // lines of the chart: name, colour, dashes, and their points by batch size
  // Only what can be drawn: an absurd number would stretch the axes beyond all others, or beyond what they can be.
  const drawable = (value, scale) =>
    typeof value === "number" && Math.abs(value) < 1e24 && (scale === "linear" || value > 1e-24);
  const points = () => drawn.flatMap(({ points }) => points);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const position = (place) => [
    plot.valToPos(numbers.batch_size[place], "x"), plot.valToPos(numbers[view.y][place], "y")];
  const nearest = (event) => {
    if (!plot) return null;
    const box = plot.over.getBoundingClientRect();
    const away = (place) => {
      const [x, y] = position(place);
      return Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    };
    const [place, distance] = points().reduce((best, place) => (away(place) < best[1] ? [place, away(place)] : best), [null, 60]);
    return distance < 60 ? place : null;
  };
  const interval = (place) => ["low", "high"].map((end) => numbers[`${view.y}_${end}`]?.[place]);
  const point = (place) => {
    if (place === null || place === undefined || place === current) return;
    current = place;
    say(place);
    plot?.redraw(false);
  };
  const say = (place) => {
    const { unit, estimate } = quantities.find(({ name }) => name === view.y);
    const [low, high] = interval(place);
    const processes = numbers.processes[place];
    const from = unit === "rate" || unit === "joules" ? digits : (value) => print(value, unit);
    const n = `n = ${processes} ${processes === 1 ? "process" : "processes"}`;
    const span = typeof low === "number" ? `95 % interval ${from(low)} to ${from(high)}` : "no interval";
    readout.replaceChildren(
      make("strong", {}, print(numbers[view.y][place], unit)),
      ` (${estimate ? "an estimate, without running" : `${span}; ${n}`}) · ${title(place)} · run keys: `,
      make("code", {}, runs[place] || "none"));
  };
  const walk = (event) => {
    const at = drawn.findIndex(({ points }) => points.includes(current));
    if (event.key === "Enter" || event.key === " ") pin(current);
    else if (event.key === "Escape") chart.blur();
    else if (at < 0 || !event.key.startsWith("Arrow")) return;
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const own = drawn[at].points;
      point(own[own.indexOf(current) + (event.key === "ArrowRight" ? 1 : -1)]);
    } else {
      const next = drawn.at((at + (event.key === "ArrowDown" ? 1 : -1)) % drawn.length);
      const from = numbers.batch_size[current];
      const off = (place) => Math.abs(Math.log(numbers.batch_size[place] / from));
      point(next.points.reduce((best, place) => (off(place) < off(best) ? place : best)));
    }
    event.preventDefault();
  };
  const marks = (self) => {
    const { ctx } = self;
    const place = (value, scale) => self.valToPos(value, scale, true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(self.bbox.left, self.bbox.top, self.bbox.width, self.bbox.height);
    ctx.clip();
    for (const { stroke, points } of drawn) {
      ctx.strokeStyle = stroke;
      ctx.lineWidth = devicePixelRatio;
      for (const each of points) {
        const ends = interval(each);
        if (!ends.every((end) => drawable(end, view.scale))) continue;
        const x = place(numbers.batch_size[each], "x");
        const [low, high] = ends.map((end) => place(end, "y"));
        const cap = 4 * devicePixelRatio;
        ctx.beginPath();
        ctx.moveTo(x, low);
        ctx.lineTo(x, high);
        for (const y of [low, high]) { ctx.moveTo(x - cap, y); ctx.lineTo(x + cap, y); }
        ctx.stroke();
      }
    }
    ctx.restore();
    if (points().includes(current)) {
      ctx.strokeStyle = colour("--ink");
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.beginPath();
      ctx.arc(place(numbers.batch_size[current], "x"), place(numbers[view.y][current], "y"), 8 * devicePixelRatio, 0, 7);
      ctx.stroke();
    }
  };
  const drawChart = (rows) => {
    plot?.destroy();
    plot = null;
    const byLine = new Map();
    const fits = (place) => drawable(numbers.batch_size[place], view.x);
    for (const place of [...rows].sort((one, other) => one - other)) {
      if (fits(place)) byLine.set(line(place), [...(byLine.get(line(place)) ?? []), place]);
    }
    const measured = (places) => places.some((place) => drawable(numbers[view.y]?.[place], view.scale));
    const offered = lines.words.filter((name) => byLine.has(name) && measured(byLine.get(name)));
    const shown = new Set(view.lines ?? offered.slice(0, LINES));
    const looks = new Map(offered.map((name, at) =>
      [name, { stroke: HUES[at % HUES.length], dash: DASHES[Math.floor(at / HUES.length) % DASHES.length] }]));
    legend.replaceChildren(...offered.map((name) => {
      const box = make("input", { type: "checkbox", onchange: () => {
        const others = (view.lines ?? offered.slice(0, LINES)).filter((other) => other !== name);
        change({ lines: box.checked ? [...others, name] : others });
        [...legend.querySelectorAll("input")].find((input) => input.value === name)?.focus();
      } });
      box.value = name;
      box.checked = shown.has(name);
      const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.borderTop = `3px ${looks.get(name).dash.length ? "dashed" : "solid"} ${looks.get(name).stroke}`;
      return make("label", {}, box, swatch, name);
    }));
    const names = offered.filter((name) => shown.has(name));
    drawn = names.map((name) => ({
      name, ...looks.get(name),
      points: byLine.get(name).filter((place) => drawable(numbers[view.y][place], view.scale))
        .sort((one, other) => numbers.batch_size[one] - numbers.batch_size[other]),
    }));
    const { title: what, unit } = quantities.find(({ name }) => name === view.y) ?? { title: "nothing", unit: "rate" };
    chart.setAttribute("aria-label", `Curves of ${what} over batch size: ${drawn.length} lines, ${points().length} points`);
    if (points().includes(current)) say(current);
    else {
      current = null;
      readout.replaceChildren();
    }
    chart.replaceChildren(...(drawn.length ? [] : ["No line is shown: choose one above, or change the filters."]));
    if (!drawn.length) return;
    const sizes = [...new Set(names.flatMap((name) => byLine.get(name)).map((place) => numbers.batch_size[place]))];
    sizes.sort((one, other) => one - other);
    const values = names.map((name, at) => {
      const found = new Map(byLine.get(name).map((place) => [numbers.batch_size[place], null])); // a gap where it failed
      for (const place of drawn[at].points) found.set(numbers.batch_size[place], numbers[view.y][place]);
      return sizes.map((size) => found.get(size));
    });
    const along = (size) => (view.x === "log" ? Math.log(size) : size) - (view.x === "log" ? Math.log(sizes[0]) : sizes[0]);
    const ticks = (self) => { // the batch sizes themselves, as far apart as their numbers need
      let last = -Infinity;
      return sizes.filter((size) => {
        const at = ((self.width - 100) * along(size)) / (along(sizes.at(-1)) || 1);
        if (at - last < 46) return false;
        last = at;
        return true;
      });
    };
    const paint = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const short = (value) => (value === null ? "" : unit === "bytes" || unit === "seconds" ? print(value, unit, tick) : tick(value));
    plot = new uPlot({
      width: Math.max(chart.clientWidth, 200), height: 340, cursor: { show: false }, legend: { show: false },
      scales: {
        x: { time: false, distr: view.x === "log" ? 3 : 1, log: 2, range: (_, least, most) => ( // room for the marks
          view.x === "log" ? [least / 1.15, most * 1.15] : [least - (most - least || 1) * 0.04, most + (most - least || 1) * 0.04]) },
        y: { distr: view.scale === "log" ? 3 : 1, log: unit === "bytes" ? 2 : 10 },
      },
      axes: [
        { ...paint, label: "batch size", splits: ticks, filter: (_, splits) => splits,
          values: (_, splits) => splits.map((size) => (size < 1e5 ? String(size) : tick(size))) },
        { ...paint, label: what, size: 78, values: (_, splits) => splits.map(short) },
      ],
      series: [{}, ...drawn.map(({ name, stroke, dash }) => (
        { label: name, stroke, dash, width: 2, points: { show: true, size: 7, fill: stroke } }))],
      hooks: { draw: [marks] },
    }, [sizes, ...values], chart);
  };

  // ---- two cases side by side

  const pin = (place) => {
    if (place === null || place === undefined) return;
    const others = view.pin.filter((other) => other !== place);
    change({ pin: others.length < view.pin.length ? others : [...others, place].slice(-2) });
  };
  const ratios = new Set([...quantities.map(({ name }) => name), "step_p50_s", "step_p99_s"]);
  const press = (place) => (place === current ? pin(place) : point(place)); // where nothing hovers, the first tap points
  const drawPinned = () => {
    pinned.replaceChildren();
    if (!view.pin.length) return;
    const [one, other] = view.pin;
    const rows = columns.map((column) => {
      const values = (ratios.has(column.name) && view.pin.map((place) => numbers[column.name][place])) ?? [];
      const ratio = values.length === 2 && values.every((value) => typeof value === "number") && values[0] !== 0;
      const cells = view.pin.map((place) => cell(column, place));
      return make("tr", cells.length === 2 && cells[0] !== cells[1] ? { class: "differs" } : {},
        make("th", { scope: "row" }, column.title), ...cells.map((text) => make("td", {}, text)),
        ...(other === undefined ? [] : [make("td", { class: "number" }, ratio ? `${digits(values[1] / values[0])}×` : "–")]));
    });
    pinned.append(make("h3", {}, "Pinned cases"),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Pinned cases" }, make("table", {},
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "column"),
          ...view.pin.map((place) => make("th", { scope: "col" }, title(place), " ",
            button("Unpin", () => pin(place), { "aria-label": `Unpin ${title(place)}` }))),
          ...(other === undefined ? [] : [make("th", { scope: "col", class: "number" }, "second over first")]))),
        make("tbody", {}, ...rows))));
  };

  // ---- the table

  const drawTable = (rows) => {
    const by = view.sort.replace(/^-/, "");
    head.replaceChildren(make("th", { scope: "col" }, "pin"), ...columns.map((column) => {
      const cells = make("th", { scope: "col", ...(numbers[column.name] ? { class: "number" } : {}) }, column.title);
      const direction = by === column.name ? (view.sort.startsWith("-") ? "descending" : "ascending") : "";
      header(cells, direction, () => {
        change({ sort: view.sort === column.name ? `-${column.name}` : column.name });
        head.cells[columns.indexOf(column) + 1].firstChild.focus();
      });
      return cells;
    }));
    const status = named.get("status");
    body.replaceChildren(...rows.slice(0, view.all ? rows.length : CELLS).map((place) => {
      const on = view.pin.includes(place);
      const toggle = button(on ? "✓" : "+", () => {
        pin(place);
        body.querySelector(`[data-key="${keys[place]}"]`)?.focus();
      }, { "aria-pressed": String(on), "aria-label": `Pin ${title(place)}`, "data-key": keys[place] });
      return make("tr", cell(status, place) === "ok" ? {} : { class: "warning" }, make("td", {}, toggle),
        ...columns.map((column) => {
          const text = cell(column, place);
          return make("td", numbers[column.name] ? { class: "number" } : { class: text.length <= 24 ? "short" : "long" }, text);
        }));
    }));
    more.hidden = rows.length <= CELLS;
    more.textContent = view.all ? `Show the first ${CELLS} rows` : `Show all ${rows.length} rows`;
  };

  // ---- all together

  const update = (remember = true) => {
    const rows = filtered();
    if (search.value !== view.q) search.value = view.q;
    for (const column of filters) chosen[column.name][1].value = view.filters[column.name];
    [yList.value, xList.value, sList.value] = [view.y, view.x, view.scale];
    count.textContent = `${rows.length} of ${cases.length} cases`;
    said.textContent = "";
    drawChart(rows);
    drawPinned();
    drawTable(rows);
    if (remember) history.replaceState(null, "", toAddress());
  };
  const change = (changed) => {
    view = { ...view, ...changed };
    update();
  };
  const visit = () => {
    const asks = location.hash.includes("=");
    if (asks) fromAddress();
    update(false);
    if (asks) explorer.scrollIntoView();
  };
  for (const [figure, y] of Object.entries({
    throughput: "samples_per_s", curves: "samples_per_s", memory: "peak_allocated_bytes", energy: "joules_per_sample" })) {
    if (!quantities.some(({ name }) => name === y)) continue;
    document.getElementById(figure)?.querySelector("figcaption").append(" ", make("a", { href: `#y=${y}` }, "Explore its curves"));
  }
  addEventListener("hashchange", () => location.hash.includes("=") && visit());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update(false));
  new ResizeObserver(() => plot && plot.width !== Math.max(chart.clientWidth, 200)
    && plot.setSize({ width: Math.max(chart.clientWidth, 200), height: 340 })).observe(chart);
  visit();
})();
