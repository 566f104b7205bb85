// The HTTP API's page: Swagger UI over our own document.
"use strict";

const page = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");

function follow() {
  page.classList.toggle("dark-mode", page.dataset.theme === "dark" || (page.dataset.theme !== "light" && system.matches));
}
follow();
system.addEventListener("change", follow);

const place = document.getElementById("swagger");

SwaggerUIBundle({
  dom_id: "#swagger",
  url: place.dataset.document,
  deepLinking: true,
  validatorUrl: null, // nothing is sent elsewhere
  // Whoever is signed in needs no key here, but what every form of ours carries.
  requestInterceptor: (request) => {
    request.headers["X-CSRF-Token"] = place.dataset.csrf;
    return request;
  },
});
