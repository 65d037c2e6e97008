"use strict";
// Draws the interactive parts of a run's report from the JSON beside it. Text from data reaches the page through
// textContent, or through `plain` into labels of Plotly, which reads tags in them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const ROW_PIXELS = 19;
  const NARROW = 600;
  const PRINT_WIDTH = 680;
  const MISSING = -32768;
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] };
  const DASHES = { formula: "solid", description: "dash", instance: "dashdot" };
  const get = (id) => document.getElementById(id);
  let printing = false;

  // -- helpers --------------------------------------------------------------------------------------------------

  // Plotly reads tags and entities in its labels, and $…$ as mathematics.
  const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" };
  const plain = (text) => String(text).replace(/[&<>$]/g, (letter) => ENTITIES[letter]);

  const shorten = (text, length) => {
    const letters = [...text];
    return letters.length <= length ? text : letters.slice(0, length - 1).join("") + "…";
  };

  const minus = (text) => text.replace("-", "−");
  const digits = (value, count = 3) => (value === null || !isFinite(value) ? "–" : minus(value.toFixed(count)));

  /** An element with text or elements in it; nothing is read as HTML. */
  function make(tag, attributes = {}, ...content) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...content);
    return element;
  }

  /** Values of `pack` in figures/report_numbers.py. */
  function unpack(packed) {
    const bytes = atob(packed.v);
    const values = new Float64Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) {
      const whole = ((bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8)) << 16) >> 16;
      values[i] = whole === MISSING ? NaN : whole * packed.s;
    }
    return values;
  }

  const peak = (packed) => packed.s * 32767;

  function fill(select, options) {
    const kept = select.value;
    select.replaceChildren(...options.map(([value, label]) => make("option", { value }, label)));
    if (options.some(([value]) => String(value) === kept)) select.value = kept;
  }

  function table(element, heads, rows) {
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
    const body = rows.map(({ cells, chosen }) =>
      make("tr", chosen ? { class: "chosen" } : {}, ...cells.map((text, i) => (i ? make("td", {}, text) : make("th", { scope: "row" }, text)))),
    );
    element.replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  }

  const ruleLabel = (id) => (data.names[id] && data.names[id] !== id ? `${id}: ${data.names[id]}` : id);

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = () => !printing && matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = () =>
    printing
      ? { text: "#000000", line: "#bbbbbb", page: "#ffffff", gap: data.colours.untraced }
      : { text: colour("--text"), line: colour("--line"), page: colour("--page"), gap: dark() ? colour("--gap") : data.colours.untraced };

  /** What every figure shares. */
  function layout(more) {
    const look = theme();
    const axis = { gridcolor: look.line, zerolinecolor: look.line, linecolor: look.line, tickcolor: look.line, fixedrange: matchMedia("(pointer: coarse)").matches };
    const { xaxis, yaxis, ...rest } = more;
    return {
      width: printing ? PRINT_WIDTH : undefined,
      autosize: !printing,
      paper_bgcolor: look.page,
      plot_bgcolor: look.page,
      font: { family: "system-ui, sans-serif", size: 12, color: look.text },
      margin: { l: 10, r: 10, t: 30, b: 40 },
      hoverlabel: { font: { family: "system-ui, sans-serif", size: 12 }, align: "left" },
      xaxis: { ...axis, automargin: true, ...xaxis },
      yaxis: { ...axis, automargin: true, ...yaxis },
      ...rest,
    };
  }

  const narrow = () => !printing && matchMedia(`(max-width: ${NARROW}px)`).matches;

  /** Draws a figure; one whose legends change sides is drawn anew, since Plotly would keep the old ones. */
  function show(plot, traces, look, listeners = {}) {
    const side = String(narrow());
    if (plot.dataset.narrow !== side) Plotly.purge(plot);
    const fresh = plot.dataset.narrow !== side;
    plot.dataset.narrow = side;
    Plotly.react(plot, traces, layout(look), CONFIG);
    if (fresh) for (const [name, listener] of Object.entries(listeners)) plot.on(name, listener);
  }

  // -- effect maps ----------------------------------------------------------------------------------------------

  function effectMaps() {
    const maps = data.maps;
    const [rule, form, component, metric, scale] = ["rule", "form", "component", "metric", "scale"].map((name) => get(`map-${name}`));
    const plot = get("map-plot");
    const readout = get("map-readout");
    let shown = null;
    let cursor = [0, 0];
    fill(rule, maps.rules.map((one, i) => [i, ruleLabel(one.id)]));
    // The first of the rules with most traceable forms: a map that means nothing is no beginning.
    const told = maps.rules.map((one) => Object.values(one.forms).filter((form) => form.total[0][2]).length);
    rule.value = told.indexOf(Math.max(...told));
    fill(component, maps.components.map((one, i) => [i, one.label]));
    component.value = maps.main;
    fill(metric, maps.metrics.map((one, i) => [i, `${one.name} (${one.unit})`]));

    /** The chosen map, unpacked into rows of all tokens; NaN where nothing was traced. */
    function chosenMap() {
      const prompt = maps.rules[rule.value].forms[form.value];
      const packed = prompt.maps[metric.value][component.value];
      const columns = maps.layers.length;
      const spread = (values) => {
        const rows = prompt.tokens.map(() => new Array(columns).fill(NaN));
        if (values) prompt.rows.forEach((row, i) => { for (let l = 0; l < columns; l++) rows[row][l] = values[l * prompt.rows.length + i]; });
        return rows;
      };
      return {
        prompt,
        packed,
        effect: spread(unpack(packed)),
        error: spread(packed.e && unpack(packed.e)),
        exact: prompt.exact ? spread(unpack(prompt.exact[component.value])) : null,
        unit: maps.metrics[metric.value].unit,
        total: prompt.total[metric.value],
      };
    }

    /** What is known of a cell, as lines of text. */
    function cell(map, row, column) {
      const { prompt, effect, error, exact, unit, total } = map;
      const corrupted = prompt.corrupted.includes(row) ? " (corrupted)" : "";
      const lines = [`token “${prompt.tokens[row]}”${corrupted}, ${prompt.roles[row]}`, `layer ${maps.layers[column]}`];
      const value = effect[row][column];
      if (!isFinite(value)) return [...lines, "not traced"];
      const se = error[row][column];
      lines.push(`effect ${digits(value)}${isFinite(se) ? ` ± ${digits(se)} (standard error)` : ""} ${unit}`);
      if (isFinite(se)) {
        const half = maps.quantile * se;
        lines.push(`${Math.round(100 * maps.confidence)} % interval ${digits(value - half)} to ${digits(value + half)} (${maps.samples} samples)`);
      } else lines.push("one sample, so no interval");
      if (total[2]) lines.push(`${minus((100 * value / total[0]).toFixed(0))} % of the total effect`);
      if (exact && exact[row][column] < 1) lines.push("estimated from gradients, not run");
      return lines;
    }

    function limit(map) {
      const prompts = Object.values(maps.rules[rule.value].forms);
      const all = prompts.flatMap((one) => one.maps[metric.value]);
      const packed = scale.value === "map" ? [map.packed] : all;
      return Math.max(...packed.filter((one) => one.s !== 1).map(peak), 1e-9);
    }

    function draw() {
      const map = (shown = chosenMap());
      const { prompt } = map;
      const small = narrow();
      const bound = limit(map);
      const corrupted = new Set(prompt.corrupted);
      const labels = prompt.tokens.map((token, i) => {
        const text = plain(shorten(token, small ? 12 : 22));
        return corrupted.has(i) ? `<b>${text}*</b>` : text;
      });
      const trace = {
        type: "heatmap", z: map.effect, x: maps.layers, y: prompt.tokens.map((_, i) => i),
        zmin: -bound, zmax: bound, colorscale: data.colours.diverging, hoverongaps: true,
        text: map.effect.map((row, r) => row.map((_, c) => plain(cell(map, r, c).join("\n")).replaceAll("\n", "<br>"))),
        hovertemplate: "%{text}<extra></extra>",
        colorbar: {
          title: { text: small ? `indirect effect (${plain(map.unit)})` : `indirect effect<br>(${plain(map.unit)})`, font: { size: small ? 11 : 12 }, side: small ? "top" : "right" }, thickness: 12, outlinewidth: 0,
          ...(small ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", ypad: 4 } : {}),
        },
      };
      const below = small ? 125 : 45;
      show(plot, [trace], {
        height: Math.max(ROW_PIXELS * prompt.tokens.length, 150) + below + 40,
        margin: { l: 10, r: 10, t: 40, b: below },
        plot_bgcolor: theme().gap,
        xaxis: { title: { text: "layer", standoff: 5 }, showgrid: false, zeroline: false },
        yaxis: { autorange: "reversed", tickvals: prompt.tokens.map((_, i) => i), ticktext: labels, tickfont: { size: small ? 11 : 12 }, showgrid: false, zeroline: false },
        shapes: [],
      }, { plotly_hover: hovered });
      describe(map);
    }

    function describe(map) {
      const { prompt } = map;
      get("map-title").replaceChildren(
        make("strong", {}, maps.components[component.value].label), `, ${form.value}: “${prompt.prompt}” → “${prompt.answer}”`,
        prompt.source ? ` (${prompt.source})` : "",
      );
      if (!map.total[2]) get("map-title").append(" ", make("span", { class: "bad" }, "Not traceable: the total effect is within noise, so this map means nothing."));
      readout.textContent = "";
      cursor = [0, 0];
      const forms = Object.entries(maps.rules[rule.value].forms);
      table(get("map-total"), ["Form", `Total effect (${map.unit})`, "Standard error", "Traceable", "Tokens traced", "Answer", "Prompt"], forms.map(([name, one]) => {
        const [te, se, traceable] = one.total[metric.value];
        return {
          chosen: name === form.value,
          cells: [name, digits(te), digits(se), traceable ? "yes" : "no", `${one.rows.length} of ${one.tokens.length}`, `${one.answer}${one.source ? ` (${one.source})` : ""}`, one.prompt],
        };
      }));
      values();
    }

    function values() {
      if (!get("map-values").open) return;
      const { prompt, effect, error } = shown;
      table(get("map-values").querySelector("table"), ["Token", ...maps.layers.map((layer) => `layer ${layer}`)], prompt.rows.map((row) => ({
        cells: [prompt.tokens[row] + (prompt.corrupted.includes(row) ? "*" : ""), ...effect[row].map((value, c) => digits(value) + (isFinite(error[row][c]) ? ` ± ${digits(error[row][c])}` : ""))],
      })));
    }

    const say = (row, column) => { readout.textContent = cell(shown, row, column).join("; "); };

    function hovered({ points: [point] }) {
      cursor = point.pointIndex.slice();
      say(...cursor);
    }

    function move(event) {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const clip = (value, count) => Math.min(Math.max(value, 0), count - 1);
      cursor = [clip(cursor[0] + step[0], shown.prompt.tokens.length), clip(cursor[1] + step[1], maps.layers.length)];
      const [row, column] = cursor;
      const x = maps.layers[column];
      Plotly.relayout(plot, { shapes: [{ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: row - 0.5, y1: row + 0.5, line: { color: "#000000", width: 2 } }] });
      say(row, column);
    }

    function chooseRule() {
      const forms = maps.forms.filter((name) => name in maps.rules[rule.value].forms);
      fill(form, forms.map((name) => [name, name]));
      form.disabled = !forms.length;
      if (forms.length) return draw();
      shown = null;
      Plotly.purge(plot);
      delete plot.dataset.narrow;
      get("map-title").textContent = "Nothing of this rule was traced.";
      readout.textContent = "";
      get("map-total").replaceChildren();
      get("map-values").querySelector("table").replaceChildren();
    }

    if (!maps.rules.length) {
      get("map-title").textContent = "No map fits into this page.";
      return () => {};
    }
    rule.addEventListener("change", chooseRule);
    for (const select of [form, component, metric, scale]) select.addEventListener("change", draw);
    get("map-values").addEventListener("toggle", () => shown && values());
    chooseRule();
    plot.addEventListener("keydown", (event) => shown && move(event));
    return () => shown && draw();
  }

  // -- faithfulness ---------------------------------------------------------------------------------------------

  function faithfulness() {
    const curves = data.faithfulness;
    const [plot, component] = [get("faithfulness-plot"), get("faithfulness-component")];
    fill(component, curves.components.map((one, i) => [i, one.label]));
    component.value = Math.max(0, curves.components.findIndex((one) => one.name === "mlp"));
    const percent = curves.shares.map((share) => 100 * share);

    function draw() {
      const c = +component.value;
      const share = Math.round(100 * curves.confidence);
      const bands = [];
      const lines = [];
      curves.rankings.forEach(({ name, colour }, r) => {
        const [mean, low, high] = [curves.mean[c][r], curves.lower[c][r], curves.upper[c][r]];
        if (low.every((value) => value !== null)) {
          bands.push({ x: [...percent, ...percent.slice().reverse()], y: [...high, ...low.slice().reverse()], fill: "toself", fillcolor: colour, opacity: 0.15, line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: name });
        }
        const text = mean.map((value, s) => {
          const interval = low[s] === null ? "" : `<br>${share} % interval ${digits(low[s])} to ${digits(high[s])}`;
          return `${plain(name)}, ${percent[s]} % of sites<br>${digits(value)} recovered${interval}`;
        });
        lines.push({ x: percent, y: mean, mode: "lines+markers", marker: { size: 5, color: colour }, line: { color: colour, width: 2 }, name: plain(name), legendgroup: name, text, hovertemplate: "%{text}<extra></extra>" });
      });
      show(plot, [...bands, ...lines], {
        height: 360,
        xaxis: { title: { text: "share of sites restored together (%)", standoff: 5 }, type: "log", tickvals: percent },
        yaxis: { title: { text: "recovered share" }, rangemode: "tozero" },
        legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
      });
      get("faithfulness-note").textContent = curves.notes[c];
    }
    component.addEventListener("change", draw);
    draw();
    return draw;
  }

  // -- layer profiles -------------------------------------------------------------------------------------------

  function layerProfiles() {
    const profile = data.profile;
    const plot = get("profile-plot");
    const [component, role] = [get("profile-component"), get("profile-role")];
    if (!profile.roles.length) {
      get("profile-note").textContent = "No prompt is traceable, so there is no profile.";
      return () => {};
    }
    fill(component, profile.components.map((one, i) => [i, one.label]));
    fill(role, profile.roles.map((one, i) => [i, one.label]));
    const chosen = profile.selection;
    const place = (list, name) => Math.max(list.findIndex((one) => one.name === name), 0);
    component.value = place(profile.components, chosen ? chosen.component : "mlp");
    role.value = place(profile.roles, (chosen && chosen.role) || "lookup");

    function draw() {
      const c = component.value;
      const r = role.value;
      const share = Math.round(100 * profile.confidence);
      const traces = profile.forms.flatMap((form, f) => {
        const mean = profile.aie[c][r][f];
        if (mean.every((value) => value === null)) return [];
        const [low, high] = [profile.lower[c][r][f], profile.upper[c][r][f]];
        const ink = data.colours.forms[form];
        const lines = [];
        if (low.some((value) => value !== null)) {
          const x = [...profile.layers, ...profile.layers.slice().reverse()];
          lines.push({ x, y: [...high, ...low.slice().reverse()], fill: "toself", fillcolor: ink + "2e", line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: form });
        }
        const n = profile.n[c][r][f];
        const text = mean.map((value, l) => {
          const interval = low[l] === null ? "one rule, so no interval" : `${share} % interval ${digits(low[l])} to ${digits(high[l])}`;
          return plain(`${form}, layer ${profile.layers[l]}\n${digits(value)} ${profile.unit}\n${interval}\n${n} rule${n === 1 ? "" : "s"}`).replaceAll("\n", "<br>");
        });
        lines.push({ x: profile.layers, y: mean, mode: "lines+markers", marker: { size: 5, color: ink }, line: { color: ink, dash: DASHES[form] || "solid", width: 2 }, name: plain(`${form} (n = ${n})`), legendgroup: form, text, hovertemplate: "%{text}<extra></extra>" });
        return lines;
      });
      const here = chosen && (chosen.component === profile.components[c].name) && ((chosen.role || "lookup") === profile.roles[r].name);
      const shapes = here ? chosen.groups.flatMap((group, g) => group.layers.map((layer) => ({
        type: "rect", xref: "x", yref: "paper", x0: layer - 0.5, x1: layer + 0.5, y0: 1.01 + 0.035 * g, y1: 1.035 + 0.035 * g, line: { width: group.supported ? 0 : 1, color: data.colours.forms[group.forms[0]] || "#888888" },
        fillcolor: group.supported ? data.colours.forms[group.forms[0]] || "#888888" : "rgba(0,0,0,0)",
      }))) : [];
      const small = narrow();
      show(plot, traces, {
        height: small ? 420 : 400,
        margin: { l: 10, r: 10, t: 30 + 14 * (here ? chosen.groups.length : 0), b: small ? 120 : 75 },
        xaxis: { title: { text: "layer", standoff: 5 }, range: [profile.layers[0] - 0.6, profile.layers.at(-1) + 0.6], zeroline: false },
        yaxis: { title: { text: `average indirect effect<br>(${plain(profile.unit)})` } },
        legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom" },
        hovermode: "closest",
        shapes,
      });
      get("profile-note").textContent = profile.note + (here
        ? ` Bars above: layers chosen for ${chosen.groups.map((group) => `${group.name.replaceAll("+", " + ")}${group.supported ? "" : " (hollow: not supported)"}`).join("; ")}, from below.`
        : chosen ? " The layers were chosen on another component or role." : "");
      values();
    }

    function values() {
      if (!get("profile-values").open) return;
      const [c, r] = [component.value, role.value];
      table(get("profile-values").querySelector("table"), ["Layer", ...profile.forms], profile.layers.map((layer, l) => ({
        cells: [String(layer), ...profile.forms.map((_, f) => digits(profile.aie[c][r][f][l]) + (profile.lower[c][r][f][l] === null ? "" : ` [${digits(profile.lower[c][r][f][l])}, ${digits(profile.upper[c][r][f][l])}]`))],
      })));
    }

    component.addEventListener("change", draw);
    role.addEventListener("change", draw);
    get("profile-values").addEventListener("toggle", values);
    draw();
    return draw;
  }

  // -- scores ---------------------------------------------------------------------------------------------------

  function editScores() {
    const scores = data.scores;
    const [plot, mode, editor] = [get("score-plot"), get("score-mode"), get("score-editor")];
    if (!scores.modes.length) {
      get("score-note").textContent = "The file holds no score after an edit.";
      return () => {};
    }
    fill(mode, scores.modes.map((one, i) => [i, one.label]));
    const beforeAfter = (before, after) => (after === null || !isFinite(after) ? "–" : before === null || !isFinite(before) ? digits(after, 2) : `${digits(before, 2)} → ${digits(after, 2)}`);

    function draw() {
      const one = scores.modes[mode.value];
      const count = one.editors.length;
      const small = narrow();
      const look = theme();
      const traces = one.editors.flatMap((name, e) => {
        const y = one.metrics.map((_, m) => m + (count > 1 ? -0.32 + 0.64 * e / (count - 1) : 0));
        const ink = data.colours.editors[name];
        const after = one.cells[e].map((cell) => cell.after);
        const side = (end, sign) => one.cells[e].map((cell) => (cell.interval[end] === null ? 0 : sign * (cell.interval[end] - cell.after)));
        const text = one.cells[e].map((cell, m) => plain([
          `${name}: ${one.metrics[m]}`, `before → after: ${beforeAfter(cell.before, cell.after)}`,
          cell.interval[0] === null ? "one rule, so no interval" : `${Math.round(100 * scores.confidence)} % interval after ${digits(cell.interval[0], 2)} to ${digits(cell.interval[1], 2)}`,
          `${cell.n} rule${cell.n === 1 ? "" : "s"}`,
        ].join("\n")).replaceAll("\n", "<br>"));
        const hover = { text, hovertemplate: "%{text}<extra></extra>" };
        return [
          { x: one.cells[e].map((cell) => cell.before), y, mode: "markers", marker: { size: 9, color: look.page, line: { color: ink, width: 2 } }, showlegend: false, legendgroup: name, ...hover },
          { x: after, y, mode: "markers", marker: { size: 9, color: ink }, name: plain(shorten(name, 40)), legendgroup: name, error_x: { type: "data", symmetric: false, array: side(1, 1), arrayminus: side(0, -1), color: ink, thickness: 2, width: 0 }, ...hover },
        ];
      });
      const label = (text) => plain(small ? text.replace(" (", "\n(") : text).replaceAll("\n", "<br>");
      const legend = small || count > 12 ? 20 * Math.ceil(count / (small ? 1 : 4)) : 24 * Math.ceil(count / 4);
      const body = one.metrics.length * Math.max(34, 11 * count + 12);
      show(plot, traces, {
        height: body + 80 + legend,
        margin: { l: 10, r: 15, t: 10, b: 60 + legend },
        xaxis: { title: { text: small ? "" : plain(one.label) }, ...(one.share ? { range: [-0.04, 1.04] } : {}) },
        yaxis: { tickvals: one.metrics.map((_, m) => m), ticktext: one.metrics.map(label), range: [one.metrics.length - 0.5, -0.5], showgrid: false, zeroline: false, tickfont: { size: small ? 10 : 12 } },
        shapes: one.metrics.slice(1).map((_, m) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: m + 0.5, y1: m + 0.5, line: { color: look.line, width: 1 } })),
        legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom" },
        hovermode: "closest",
      });
      get("score-note").textContent = `Hollow: before the edit, full: after. Bars: ${Math.round(100 * scores.confidence)} % bootstrap interval over rules, after the edit. Means over rules of each rule's mean over forms.`;
      table(get("score-table"), ["Editor", ...one.metrics], one.editors.map((name, e) => ({
        cells: [name, ...one.cells[e].map((cell) => beforeAfter(cell.before, cell.after) + (cell.after !== null && cell.interval[0] !== null ? ` [${digits(cell.interval[0], 2)}, ${digits(cell.interval[1], 2)}]` : ""))],
      })));
      fill(editor, one.editors.map((name) => [name, name]));
      rules();
    }

    function rules() {
      if (!get("score-rules").open) return;
      const one = scores.modes[mode.value];
      const each = unpack(one.each);
      const e = one.editors.indexOf(editor.value);
      const count = scores.rules.length;
      const at = (m, phase, rule) => each[((e * one.metrics.length + m) * 2 + phase) * count + rule];
      const rows = scores.rules.map((name, rule) => ({ cells: [name, ...one.metrics.map((_, m) => beforeAfter(at(m, 0, rule), at(m, 1, rule)))] }));
      table(get("score-rules").querySelector("table"), ["Rule", ...one.metrics], rows.filter(({ cells }) => cells.slice(1).some((cell) => cell !== "–")));
    }

    mode.addEventListener("change", draw);
    editor.addEventListener("change", rules);
    get("score-rules").addEventListener("toggle", rules);
    draw();
    return draw;
  }

  // -- answers --------------------------------------------------------------------------------------------------

  function promptsAndAnswers() {
    const { texts, rules, metrics, scores } = data.answers;
    const [rule, editor, list] = [get("answer-rule"), get("answer-editor"), get("answer-list")];
    const NAMES = { token_accuracy: "tokens right", exact: "exact" };
    fill(rule, Object.keys(rules).map((id) => [id, ruleLabel(id)]));

    const score = (row, when) => scores.flatMap((name, i) => {
      const value = row[8 + i];
      const [, kind, at] = name.match(/^(.*)_(before|after)$/);
      if (at !== when || value === null) return [];
      return kind === "exact" ? (value === 1 ? ["exact"] : []) : [`${NAMES[kind] || kind} ${Math.round(100 * value)} %`];
    }).join(", ");

    function said(text, row, when, attributes = {}) {
      const value = score(row, when);
      return make("dd", attributes, text === "" ? "(nothing)" : text, ...(value ? [" ", make("span", { class: "score" }, `(${value})`)] : []));
    }

    /** One question: its texts, and the answer after the edit of every editor. */
    function question(rows) {
      const [, form, , prompt, wanted, truth, before] = rows[0].map((at, i) => (i < 8 ? texts[at] : at));
      const facts = make("dl", {});
      if (truth !== "") facts.append(make("dt", {}, "true answer"), make("dd", {}, truth));
      if (wanted !== "") facts.append(make("dt", {}, "wanted answer"), make("dd", {}, wanted));
      facts.append(make("dt", {}, "before"), said(before, rows[0], "before"));
      for (const row of rows) facts.append(make("dt", {}, `after ${texts[row[0]]}`), said(texts[row[7]], row, "after", { class: "after" }));
      return make("div", { class: "question" }, make("p", {}, prompt, " ", make("span", { class: "score" }, `(${form})`)), facts);
    }

    function draw() {
      const rows = (rules[rule.value] || []).filter((row) => editor.value === "" || texts[row[0]] === editor.value);
      const groups = new Map();
      for (const row of rows) {
        const metric = texts[row[2]];
        const key = JSON.stringify(row.slice(1, 7));
        if (!groups.has(metric)) groups.set(metric, new Map());
        if (!groups.get(metric).has(key)) groups.get(metric).set(key, []);
        groups.get(metric).get(key).push(row);
      }
      const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.dataset.metric));
      list.replaceChildren(...[...groups].map(([metric, questions], i) => {
        const part = make("details", { "data-metric": metric }, make("summary", {}, `${metrics[metric] ?? metric}: ${questions.size} question${questions.size === 1 ? "" : "s"}`));
        const show = () => { if (part.open && part.children.length === 1) part.append(...[...questions.values()].map(question)); };
        part.addEventListener("toggle", show);
        part.open = open.size ? open.has(metric) : i === 0;
        show();
        return part;
      }));
      if (!rows.length) list.textContent = "No answers.";
    }

    function chooseRule() {
      const editors = [...new Set((rules[rule.value] || []).map((row) => texts[row[0]]))];
      fill(editor, [["", "all"], ...editors.map((name) => [name, name])]);
      draw();
    }

    rule.addEventListener("change", chooseRule);
    editor.addEventListener("change", draw);
    chooseRule();
  }

  // -- all of it ------------------------------------------------------------------------------------------------

  const redraw = [];
  if (data.maps) redraw.push(effectMaps());
  if (data.faithfulness) redraw.push(faithfulness());
  if (data.profile) redraw.push(layerProfiles());
  if (data.scores) redraw.push(editScores());
  if (data.answers) promptsAndAnswers();
  const again = () => redraw.forEach((draw) => draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  matchMedia(`(max-width: ${NARROW}px)`).addEventListener("change", again);
  addEventListener("beforeprint", () => { printing = true; again(); });
  addEventListener("afterprint", () => { printing = false; again(); });
  document.documentElement.dataset.ready = "yes";
})();
