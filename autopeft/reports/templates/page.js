"use strict";
(function () {
  var tip = document.createElement("div");
  tip.id = "tip"; tip.hidden = true; tip.setAttribute("role", "tooltip");
  document.body.appendChild(tip);
  document.querySelectorAll(".ap-pt > title, .ap-fig g > title").forEach(function (title) {
    var group = title.parentNode;
    if (group.classList.contains("ap")) return;
    group.dataset.tip = title.textContent;
    title.remove();
  });
  function show(group, x, y) {
    tip.textContent = group.dataset.tip;
    tip.hidden = false;
    var box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18) + "px";
  }
  function hide() { tip.hidden = true; }
  document.querySelectorAll("[data-tip]").forEach(function (group) {
    group.addEventListener("pointermove", function (event) { show(group, event.clientX, event.clientY); });
    group.addEventListener("pointerleave", hide);
    group.addEventListener("focus", function () {
      var box = group.getBoundingClientRect();
      show(group, box.right, box.bottom);
    });
    group.addEventListener("blur", hide);
    if (group.dataset.trial) group.addEventListener("click", function () {
      var row = document.getElementById("front-" + group.dataset.trial);
      if (!row) return;
      row.classList.add("flash");
      setTimeout(function () { row.classList.remove("flash"); }, 2500);
      row.scrollIntoView({ block: "nearest", behavior: "smooth" });
    });
  });
  addEventListener("scroll", hide, { passive: true });
  document.querySelectorAll(".legend button").forEach(function (button) {
    button.addEventListener("click", function () {
      var off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      document.querySelectorAll(".ap-front ." + button.dataset.method).forEach(function (group) {
        group.classList.toggle("dim", off);
      });
    });
  });
  document.querySelectorAll("table.sort").forEach(function (table) {
    table.querySelectorAll("th").forEach(function (head, index) {
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0], rows = Array.from(body.rows);
        function value(row) {
          var cell = row.cells[index], key = cell.dataset.key;
          return key !== undefined ? (key === "" ? null : Number(key)) : cell.textContent.trim();
        }
        rows.sort(function (a, b) {
          var x = value(a), y = value(b);
          if (x === null || y === null) return (x === null) - (y === null);
          var order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
          return up ? order : -order;
        });
        rows.forEach(function (row) { body.appendChild(row); });
      });
    });
  });
  document.querySelectorAll(".filter").forEach(function (filter) {
    var table = document.getElementById(filter.dataset.for);
    var status = filter.querySelector("select"), words = filter.querySelector("input"), shown = filter.querySelector("output");
    filter.hidden = false;
    function apply() {
      var count = 0, want = words.value.toLowerCase();
      Array.from(table.tBodies[0].rows).forEach(function (row) {
        var fits = (!status.value || row.dataset.status === status.value || row.dataset.place === status.value)
          && row.textContent.toLowerCase().includes(want);
        row.hidden = !fits;
        count += fits;
      });
      shown.textContent = count + " shown";
    }
    status.addEventListener("change", apply);
    words.addEventListener("input", apply);
    apply();
  });
})();
