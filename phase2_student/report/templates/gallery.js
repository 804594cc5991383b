(() => {
  // the state of the filter is the page's fragment: #filter=wrong&model=distilled&category=counting
  const form = document.getElementById("filter");
  const cards = [...document.querySelectorAll(".card")];
  const count = document.getElementById("count");
  const names = ["filter", "model", "category", "environment"];
  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const name of names) {
      const field = form.elements[name];
      const wanted = asked.get(name);
      if (field && wanted !== null && [...field.options].some((option) => option.value === wanted)) field.value = wanted;
    }
  };
  const write = () => {
    const state = new URLSearchParams();
    for (const name of names) {
      const field = form.elements[name];
      if (field && field.selectedIndex > 0) state.set(name, field.value);
    }
    history.replaceState(null, "", "#" + state);
  };
  const show = () => {
    const value = Object.fromEntries(names.map((name) => [name, form.elements[name] ? form.elements[name].value : ""]));
    let shown = 0;
    for (const card of cards) {
      const right = (name) => card.dataset.right.split("\n").includes(name);
      const wrong = (name) => !("unknown" in card.dataset) && !right(name);
      const teacher = form.dataset.teacher;
      const fits = {
        all: true,
        right: right(value.model),
        wrong: wrong(value.model),
        lost: right(teacher) && wrong(value.model),
        won: wrong(teacher) && right(value.model),
        flagged: card.dataset.flagged.split("\n").includes(value.model),
      }[value.filter];
      const here = (!value.category || card.dataset.category === value.category)
        && (!value.environment || card.dataset.environment === value.environment);
      card.hidden = !(fits && here);
      shown += !card.hidden;
    }
    count.textContent = `${shown} of ${cards.length} shown`;
  };
  form.hidden = false;
  read();
  show();
  form.addEventListener("change", () => { write(); show(); });
  form.addEventListener("reset", () => setTimeout(() => { write(); show(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { read(); show(); });
})();
