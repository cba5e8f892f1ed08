// Questions to begin with. The long one runs past every budget, so that its reader has to forget.

const DAYS = [
  "On Monday the harbour was grey, and the boats came in early with very little fish.",
  "My sister painted the kitchen door green, and the cat walked through the wet paint.",
  "We hid the spare key under the blue flower pot beside the old pump.",
  "The baker told a long story about a goose that rang the church bell at noon.",
  "In the evening it rained, so we stayed inside and played cards until the lamp went out.",
  "On Wednesday a letter came from my uncle, who has bought a second-hand bicycle.",
  "He writes that the roads are steep there and that the cheese is better than ours.",
  "The neighbours cut their hedge into the shape of a ship, with a chimney and two sails.",
  "Nobody knows why, but the children salute it every morning on their way to school.",
  "On Friday the market was so crowded that I lost my hat and found another one.",
  "I bought apples, string, a small brass bell, and a book about the moons of Jupiter.",
  "The book says that one of them has volcanoes, and that another may have an ocean.",
  "At night we looked for them with the telescope, and saw four small lights in a row.",
  "On Sunday the wind turned, the boats stayed out late, and everybody had fish again.",
];

const ASKED = "Question: Under what did we hide the spare key? Answer in one sentence.";

export const STORY = `Read my diary.\n\n${DAYS.join(" ")}\n\n${ASKED}`;

export const SHORT = "Explain in a few sentences why the sky is blue.";
