(function () {
  var form = document.getElementById("filter");
  var family = document.getElementById("by-family");
  var state = document.getElementById("by-state");
  var text = document.getElementById("by-text");
  var sections = document.querySelectorAll("section.family");
  function apply() {
    var words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    var total = 0;
    sections.forEach(function (section) {
      var left = 0;
      section.querySelectorAll("li").forEach(function (row) {
        var said = (row.textContent + " " + row.dataset.words).toLowerCase();
        var fits = (!family.value || section.dataset.family === family.value) &&
          (!state.value || row.dataset.state === state.value || row.dataset.verdict === state.value) &&
          words.every(function (word) { return said.indexOf(word) >= 0; });
        row.hidden = !fits;
        left += fits;
      });
      section.hidden = !left;
      total += left;
    });
    document.getElementById("shown").textContent = total + (total === 1 ? " paper" : " papers");
    document.getElementById("none").hidden = total > 0;
  }
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  apply();
})();
