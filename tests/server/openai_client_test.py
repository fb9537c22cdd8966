"""A session of the official openai client (PyPI). Skips, saying so, where the package is not there: scripts/test.sh
puts it into a venv in the build directory."""

import tempfile
import unittest

import live
from program import ProgramTest

try:
    import openai
except ImportError as error:
    openai = None
    missing = str(error)


class Session(ProgramTest):
    @classmethod
    def setUpClass(cls):
        if openai is None:
            raise unittest.SkipTest(f"the openai client is not installed ({missing})")
        cls.folder = tempfile.TemporaryDirectory()
        keys = live.pathlib.Path(cls.folder.name) / "keys"
        keys.write_text("sk-test\n")
        cls.server = live.Server("--deterministic", "--served-model-name", "demo", "--api-key-file", keys,
                                 model=live.model_with_chat(cls.folder.name))
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="sk-test", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0
        cls.folder.cleanup()

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").owned_by, "spinfer")

    def test_completion_and_its_stream(self):
        fields = dict(model="demo", prompt="The old man", max_tokens=20, temperature=0, logprobs=2)
        whole = self.client.completions.create(**fields)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        self.assertEqual(whole.usage.completion_tokens, 20)
        self.assertEqual(len(whole.choices[0].logprobs.tokens), 20)
        chunks = list(self.client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].text for c in chunks if c.choices), whole.choices[0].text)
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)

    def test_chat_and_its_stream(self):
        fields = dict(model="demo", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=15,
                      temperature=0, n=2, stop=["\n\n"], seed=3)
        whole = self.client.chat.completions.create(**fields)
        self.assertEqual(len(whole.choices), 2)
        self.assertEqual(whole.choices[0].message.role, "assistant")
        texts = {0: "", 1: ""}
        for chunk in self.client.chat.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, {c.index: c.message.content for c in whole.choices})

    def test_leaving_a_stream_stops_the_work(self):
        with self.client.completions.create(model="demo", prompt="Once", max_tokens=450, stream=True,
                                            extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        self.assertLess(self.server.wait_idle(), 5)

    def test_logit_bias(self):
        ask = {"model": "demo", "prompt": "The old man", "max_tokens": 4, "temperature": 0}
        plain = self.client.completions.create(**ask, logprobs=1).choices[0]
        forced = self.client.completions.create(**ask, logit_bias={"300": 100}).choices[0]
        self.assertEqual(len(set(forced.text.split())), 1, forced.text)
        key = {"Authorization": "Bearer sk-test"}
        ids, known = (self.server.post("/tokenize", {"prompt": text}, headers=key)[1]["tokens"]
                      for text in ("The old man" + plain.text, "The old man"))
        banned = self.client.completions.create(**ask, logit_bias={str(ids[len(known)]): -100}).choices[0]
        self.assertNotEqual(banned.text, plain.text)

    def test_errors(self):
        make = self.client.completions.create
        with self.assertRaises(openai.NotFoundError):
            make(model="gpt-4", prompt="a")
        with self.assertRaises(openai.BadRequestError) as caught:
            make(model="demo", prompt="a", max_tokens=5000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError) as caught:
            make(model="demo", prompt="a", logit_bias={"5": 101})
        self.assertEqual(caught.exception.param, "logit_bias")
        with self.assertRaises(openai.BadRequestError):
            make(model="demo", prompt="a", logit_bias={"99999": 1})
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.server.url + "/v1", api_key="sk-wrong", max_retries=0).models.list()


if __name__ == "__main__":
    unittest.main(verbosity=1)
