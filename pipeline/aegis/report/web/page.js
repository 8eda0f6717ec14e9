"use strict";

const byId = (id) => document.getElementById(id);
const TEXTS = JSON.parse(byId("texts").textContent);
const STORED = "aegis.language";
let language = firstLanguage();

// the language that was chosen here before, else the browser's
function firstLanguage() {
  let chosen = null;
  try {
    chosen = localStorage.getItem(STORED);
  } catch {
    // a browser may forbid storage
  }
  const wanted = chosen ?? navigator.languages.find((tag) => tag.split("-")[0] in TEXTS) ?? "en";
  const found = wanted.split("-")[0];
  return found in TEXTS ? found : "en";
}

function text(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

// untrusted text goes through here: textContent makes no markup of it
function make(tag, kind = "", words = "") {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = words;
  return element;
}

// a label in the page's language, which follows the switch of languages
function label(tag, kind, key) {
  const element = make(tag, kind, text(key));
  element.dataset.text = key;
  return element;
}

function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = text(element.dataset.text);
  }
  for (const element of document.querySelectorAll("[data-placeholder]")) {
    element.placeholder = text(element.dataset.placeholder);
  }
  const other = language === "ja" ? "en" : "ja";
  byId("language").textContent = other === "ja" ? "日本語" : "English";
  byId("language").lang = other;
  document.dispatchEvent(new Event("translated"));
}

byId("language").addEventListener("click", () => {
  language = language === "ja" ? "en" : "ja";
  try {
    localStorage.setItem(STORED, language);
  } catch {
    // the choice then holds until the page is closed
  }
  translate();
});
