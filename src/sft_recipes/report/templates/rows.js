"use strict"
// Whatever a row holds is set as text, and never read as HTML.
{
  const data = JSON.parse(document.getElementById("rows-data").textContent)
  const place = document.getElementById("browser"), filters = place.querySelector("form")
  const list = place.querySelector(".list"), said = place.querySelector("output"), more = place.querySelector(".more")
  const PAGE = 25
  let found = [], shown = 0

  const made = (name, text, of) => {
    const element = of.appendChild(document.createElement(name))
    element.textContent = text
    return element
  }
  const chosen = name => filters.elements[name]?.value ?? ""
  const others = (row, model, right) => row[4].some((each, n) => n !== model && each[1] === right)

  const fits = row => {
    const model = Number(chosen("model")), [answer, right] = row[4][model], text = chosen("text").toLowerCase()
    const outcome = chosen("outcome")
    return (chosen("group") === "" || row[1] === Number(chosen("group")))
      && (chosen("gold") === "" || row[2] === Number(chosen("gold")))
      && (chosen("predicted") === ""
        || (typeof answer === "number" ? answer : data.labels.length) === Number(chosen("predicted")))
      && (outcome !== "right" || right === 1) && (outcome !== "wrong" || right === 0)
      && (outcome !== "only" || (right === 1 && others(row, model, 0)))
      && (outcome !== "lost" || (right === 0 && others(row, model, 1)))
      && (text === "" || [data.begin + row[3], row[2], ...row[4].map(each => each[0])]
        .some(each => typeof each === "string" && each.toLowerCase().includes(text)))
  }

  const draw = row => {
    const [number, group, gold, prompt, answers] = row, box = made("div", "", list), head = made("p", `row ${number}`, box)
    const classes = data.labels.length > 0, say = text => head.append(` · ${text}`)
    box.className = "row"
    if (group >= 0) say(data.groups[group])
    if (classes) { say("gold "); made("b", data.labels[gold], head) }
    answers.forEach(([answer, right, sure], n) => {
      say(`${data.models[n]} `)
      if (!classes) made("b", right ? "right" : "wrong", head)
      else if (typeof answer === "number") made("b", data.labels[answer], head)
      else { head.append("invalid "); made("code", answer, head) }
      if (sure !== null) head.append(` ${sure.toFixed(3)}`)
    })
    if (classes) return void made("pre", prompt, box)
    const texts = [["prompt", prompt], ["reference", gold], ...answers.map(([answer], n) => [data.models[n], answer])]
    const pairs = made("dl", "", box)
    for (const [name, text] of texts) {
      made("dt", name, pairs).className = "faint"
      made("pre", text, made("dd", "", pairs))
    }
  }

  const extend = () => {
    for (const row of found.slice(shown, shown + PAGE)) draw(row)
    shown = Math.min(found.length, shown + PAGE)
    said.textContent = `${found.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} rows, ${shown.toLocaleString("en")} shown`
    more.hidden = shown === found.length
  }

  const filter = () => {
    const model = Number(chosen("model")), sign = { sure: -1, unsure: 1 }[chosen("order")]
    found = data.rows.filter(fits)
    if (sign) found.sort((a, b) => sign * (a[4][model][2] - b[4][model][2]))
    list.textContent = ""
    shown = 0
    extend()
  }

  filters.addEventListener("input", filter)
  filters.addEventListener("submit", event => event.preventDefault())
  filters.addEventListener("reset", () => setTimeout(filter))
  more.addEventListener("click", extend)

  // The cells of a confusion matrix lead to their rows.
  for (const cell of document.querySelectorAll("[data-pair]")) {
    const [model, gold, predicted] = cell.dataset.pair.split(" "), button = document.createElement("button")
    button.textContent = cell.textContent
    button.title = `Show these rows: gold ${data.labels[gold]}, ${data.models[model]} ${data.labels[predicted] ?? "invalid"}`
    button.addEventListener("click", () => {
      filters.reset()
      Object.entries({ model, gold, predicted, outcome: "" }).forEach(([name, value]) => { filters.elements[name].value = value })
      setTimeout(() => { filter(); place.scrollIntoView(); said.focus() })
    })
    cell.replaceChildren(button)
  }

  for (const instead of document.querySelectorAll(".without-script")) instead.hidden = true
  place.hidden = false
  filter()
}
