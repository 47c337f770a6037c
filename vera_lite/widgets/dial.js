// A picture that follows its controls; every picture is there from the beginning.

function render({ model, el }) {
  const names = model.get("names");
  const labels = model.get("labels");
  const kinds = model.get("kinds");
  const urls = model.get("pictures").map((view) => {
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  });
  const choose = (control, value) => {
    model.set("chosen", model.get("chosen").with(control, value));
    model.save_changes();
  };

  const picture = make("img", { className: "vera-picture" });
  const sentence = make("output", { className: "vera-sentence" });
  const update = []; // one function for each control: show what is chosen
  const rows = names.map((name, control) => {
    const values = labels[control];
    if (kinds[control] === "buttons") {
      const buttons = values.map((label, value) =>
        make("button", { type: "button", textContent: label, onclick: () => choose(control, value) }),
      );
      update.push((value) =>
        buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === value)),
      );
      return make("div", { className: "vera-row", role: "group", "aria-label": name }, name, ...buttons);
    }
    const input =
      kinds[control] === "switch"
        ? make("input", { type: "checkbox", onchange: () => choose(control, values.indexOf(input.checked ? "True" : "False")) })
        : make("input", {
            type: "range",
            min: 0,
            max: values.length - 1,
            step: 1,
            oninput: () => choose(control, Number(input.value)),
          });
    const shown = make("span", { className: "vera-value" });
    update.push((value) => {
      if (kinds[control] === "switch") input.checked = values[value] === "True";
      else {
        input.value = value;
        input.setAttribute("aria-valuetext", values[value]);
        shown.textContent = values[value];
      }
    });
    return make("label", { className: "vera-row" }, name, input, shown);
  });
  const root = make(
    "div",
    { className: "vera-dial" },
    make("div", { className: "vera-title", textContent: model.get("title") }),
    make("div", { className: "vera-controls" }, ...rows),
    picture,
    sentence,
  );
  // Small frames are shown with whole pixels.
  picture.onload = () => {
    const scale = Math.max(1, Math.floor(224 / picture.naturalWidth));
    picture.style.width = `${picture.naturalWidth * scale}px`;
    picture.style.imageRendering = scale > 1 ? "pixelated" : "auto";
  };
  root.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab would take the keys

  function draw() {
    const chosen = model.get("chosen");
    const at = chosen.reduce((sum, value, control) => sum * labels[control].length + value, 0);
    picture.src = urls[at];
    sentence.textContent = model.get("sentences")[at];
    picture.alt = [
      model.get("title"),
      ...names.map((name, control) => `${name}: ${labels[control][chosen[control]]}`),
    ].join(", ");
    update.forEach((show, control) => show(chosen[control]));
  }
  model.on("change:chosen", draw);
  el.replaceChildren(root);
  draw();
  return () => {
    model.off("change:chosen", draw);
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
