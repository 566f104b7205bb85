// The HTTP API's page: Swagger UI over our own document.
"use strict";

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
