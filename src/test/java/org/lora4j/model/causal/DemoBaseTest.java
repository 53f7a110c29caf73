package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Path;
import java.util.stream.LongStream;
import java.util.stream.StreamSupport;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The trained model of the demo, against transformers and its tokenizer. See src/test/python/base_model. */
class DemoBaseTest {
    private static final Logger LOG = LoggerFactory.getLogger(DemoBaseTest.class);
    private static final Path DEMO = Path.of("src/test/resources/demo");
    private static final Path BASE = DEMO.resolve("base");
    private static final JsonNode GOLDEN =
            new JsonMapper().readTree(DEMO.resolve("golden.json").toFile());

    @TempDir
    Path folder;

    @Test
    void logitsAreThoseOfTransformers() throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors golden = TensorFiles.open(DEMO.resolve("golden.safetensors"));
                CausalLM model = CausalLM.load(BASE, ScalarType.Float)) {
            for (int i = 0; i < 2; i++) {
                Tensor logits = model.forward(golden.tensor("ids." + i))
                        .select(0, 0)
                        .index_select(0, golden.tensor("positions." + i));
                Tensor expected = golden.tensor("logits." + i);
                double difference = Values.difference(logits, expected);
                LOG.info("demo base, sentence {}: {} of {}", i, difference, Values.largest(expected));
                assertThat(difference).isLessThan(1e-5 * Values.largest(expected));
            }
        }
    }

    @Test
    void theGreedyContinuationIsThatOfTransformers() throws IOException {
        long[] prompt = longs(GOLDEN.get("greedy").get("prompt"));
        long[] expected = longs(GOLDEN.get("greedy").get("continuation"));
        try (CausalLM model = CausalLM.load(BASE, ScalarType.Float)) {
            long[][] prompts = {{0, 38, 1250}, prompt};
            assertThat(model.generate(prompts, GenerationOptions.greedy(expected.length))[1])
                    .isEqualTo(expected);
        }
    }

    @Test
    void idsAreThoseOfTheTokenizer() throws IOException {
        try (Tokenizer tokenizer = Tokenizer.load(BASE)) {
            assertThat(GOLDEN.get("tokenizer").size()).isGreaterThan(10);
            for (JsonNode text : GOLDEN.get("tokenizer")) {
                String string = text.get("text").stringValue();
                long[] ids = longs(text.get("ids"));
                assertThat(tokenizer.encode(string, false)).as(string).isEqualTo(ids);
                assertThat(tokenizer.encode(string, true)).as(string).isEqualTo(longs(text.get("ids_with_bos")));
                assertThat(tokenizer.decode(ids, false)).isEqualTo(string);
            }
            assertThat(tokenizer.bosTokenId()).isZero();
            assertThat(tokenizer.eosTokenId()).isEqualTo(1);
            assertThat(tokenizer.padTokenId()).isEqualTo(2);
        }
    }

    @Test
    void savingKeepsWeightsAndText() throws IOException {
        Path target = folder.resolve("copy");
        try (PointerScope scope = new PointerScope();
                CausalLM model = CausalLM.load(BASE)) {
            assertThat(model.dtype()).isEqualTo(ScalarType.BFloat16);
            model.save(target);
        }
        try (PointerScope scope = new PointerScope();
                MappedTensors before = TensorFiles.open(BASE);
                MappedTensors after = TensorFiles.open(target);
                Tokenizer tokenizer = Tokenizer.load(target)) {
            assertThat(after.names()).containsExactlyInAnyOrderElementsOf(before.names());
            for (String name : before.names()) {
                assertThat(after.tensor(name).equal(before.tensor(name)))
                        .as(name)
                        .isTrue();
            }
            assertThat(CausalConfig.read(target)).isEqualTo(CausalConfig.read(BASE));
            assertThat(tokenizer.encode("In the beginning", true)).startsWith(0);
        }
    }

    private static long[] longs(JsonNode list) {
        return StreamSupport.stream(list.spliterator(), false)
                .flatMapToLong(n -> LongStream.of(n.longValue()))
                .toArray();
    }
}
