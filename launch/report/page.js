// Shows the nearest point of every line under the pointer. The figures are complete without it.
(function () {
  "use strict";
  var tip = document.getElementById("tip");
  function nearest(points, x) {
    var low = 0, high = points.length - 1, found = points[0];
    for (var i = low; i <= high; i++) {
      if (Math.abs(points[i][0] - x) < Math.abs(found[0] - x)) { found = points[i]; }
    }
    return found;
  }
  function follow(svg, lines) {
    var cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cursor.setAttribute("class", "cursor");
    svg.appendChild(cursor);
    svg.addEventListener("pointermove", function (event) {
      var box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
      var x = (event.clientX - box.left) * view.width / box.width;
      var hits = lines.map(function (line) { return nearest(line[2], x); });
      var first = hits.reduce(function (a, b) { return Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a; });
      var told = [first[2]];
      hits.forEach(function (hit, i) {
        if (hit[2] === first[2]) { told.push((lines.length > 1 ? lines[i][0] + ": " : "") + hit[3]); }
      });
      cursor.setAttribute("d", "M" + first[0] + " 12V" + (view.height - 38));
      tip.textContent = told.join("\n");
      tip.style.display = "block";
      var left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
      tip.style.left = Math.max(8, left) + "px";
      tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
    });
    svg.addEventListener("pointerleave", function () {
      tip.style.display = "none";
      cursor.removeAttribute("d");
    });
  }
  document.querySelectorAll("svg[data-tips]").forEach(function (svg) {
    follow(svg, JSON.parse(svg.getAttribute("data-tips")));
  });
})();
