// What the programs for Node share; calls.py says how they work. `node NAME.mjs URL MODEL`

export const [URL, MODEL] = process.argv.slice(2);
export const SPELL = 'Spell the word "tern".';
export const SPELLED = "t-e-r-n";
export const EXTRACT = "Extract name, age and city as JSON: Ada is 36 years old and lives in London.";
export const PERSON = { name: "Ada", age: 36, city: "London" };
export const WEATHER = "Weather in Oslo?";
export const WEATHER_TOLD = "It is 21 degrees in Oslo.";
export const TOO_LONG = "tern ".repeat(3000);

export async function run(calls) {
  for (const [name, call] of Object.entries(calls)) {
    await call();
    console.log(`ok ${name}`);
  }
}
