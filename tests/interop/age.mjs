// An age implementation that is not ours, as a process: a JSON object a line in, a JSON object a line out.
import { Decrypter, Encrypter, generateHybridIdentity, identityToRecipient } from "age-encryption";
import * as published from "cctv-age";
import { createInterface } from "node:readline";

const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));

const commands = {
  async identity() {
    const identity = await generateHybridIdentity();
    return { identity, recipient: await identityToRecipient(identity) };
  },
  async recipient({ identity }) {
    return { recipient: await identityToRecipient(identity) };
  },
  async encrypt({ recipients, passphrase, plain }) {
    const encrypter = new Encrypter();
    if (passphrase) encrypter.setScryptWorkFactor(10), encrypter.setPassphrase(passphrase);
    for (const recipient of recipients ?? []) encrypter.addRecipient(recipient);
    return { file: base64(await encrypter.encrypt(bytes(plain))) };
  },
  async decrypt({ identity, passphrase, file }) {
    const decrypter = new Decrypter();
    if (passphrase) decrypter.addPassphrase(passphrase);
    else decrypter.addIdentity(identity);
    return { plain: base64(await decrypter.decrypt(bytes(file))) };
  },
  async vectors() {
    return { vectors: Object.fromEntries(Object.entries(published).map(([name, file]) => [name, base64(file)])) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = await commands[command](rest);
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
