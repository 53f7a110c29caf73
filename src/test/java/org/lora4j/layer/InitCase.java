package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** One case of src/test/resources/golden/initmath, and how its tensors are compared. */
record InitCase(String name, JsonNode json, MappedTensors tensors) {
    private static final Path FOLDER = Path.of("src/test/resources/golden/initmath");

    static Stream<InitCase> of(String init) {
        try {
            JsonNode cases = new JsonMapper().readTree(Files.readString(FOLDER.resolve(init + ".json")));
            MappedTensors tensors = TensorFiles.open(FOLDER.resolve(init + ".safetensors"));
            return cases.get("cases")
                    .valueStream()
                    .map(each -> new InitCase(each.get("name").asString(), each, tensors));
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    Tensor tensor(String part) {
        return tensors.tensor(name + "." + part);
    }

    int rank() {
        return json.get("rank").asInt();
    }

    double scale() {
        return json.get("scale").asDouble();
    }

    boolean bf16() {
        return Tensors.type(tensor("weight")) == torch.ScalarType.BFloat16;
    }

    /**
     * Compares a start with PEFT's: B A, both factors up to the sign of each component, and the residual. PEFT rounds the
     * factors to the type of the weight.
     */
    void check(Start start, double tolerance) {
        Tensor weight = tensor("weight");
        Tensor a = tensor("a");
        Tensor b = tensor("b");
        assertThat(Tensors.shape(start.a())).isEqualTo(Tensors.shape(a));
        assertThat(Tensors.shape(start.b())).isEqualTo(Tensors.shape(b));
        assertThat(Tensors.type(start.a())).isEqualTo(torch.ScalarType.Float);
        assertThat(Tensors.type(start.b())).isEqualTo(torch.ScalarType.Float);
        double factors = bf16() ? 0.01 : tolerance;
        assertThat(difference(start.b().matmul(start.a()), b.matmul(a))).isLessThanOrEqualTo(factors * largest(weight));
        assertThat(difference(start.a().t().matmul(start.a()), a.t().matmul(a)))
                .isLessThanOrEqualTo(factors * largest(a.t().matmul(a)));
        assertThat(difference(start.b().matmul(start.b().t()), b.matmul(b.t())))
                .isLessThan(factors * largest(b.matmul(b.t())));
        Tensor residual = start.residual();
        if (residual == null) {
            assertThat(tensors.names()).doesNotContain(name + ".residual");
            return;
        }
        assertThat(Tensors.type(residual)).isEqualTo(Tensors.type(weight));
        assertThat(difference(residual, tensor("residual")))
                .isLessThanOrEqualTo((bf16() ? 0.004 : tolerance) * largest(weight));
    }

    /** How far {@code residual + scale * B A} is from the weight, relative to its largest value. */
    static double unlike(Tensor weight, Start start, double scale) {
        Tensor whole = start.residual()
                .to(torch.ScalarType.Float)
                .add(start.b().matmul(start.a()).mul(new Scalar(scale)));
        return difference(whole, weight) / largest(weight);
    }

    /** Largest absolute difference; infinite if shapes differ or a value is not a number. */
    static double difference(Tensor a, Tensor b) {
        if (!java.util.Arrays.equals(Tensors.shape(a), Tensors.shape(b))) {
            return Double.POSITIVE_INFINITY;
        }
        double largest = largest(a.to(torch.ScalarType.Double).sub(b.to(torch.ScalarType.Double)));
        return Double.isNaN(largest) ? Double.POSITIVE_INFINITY : largest;
    }

    static double largest(Tensor a) {
        return a.numel() == 0 ? 0 : a.to(torch.ScalarType.Double).abs().max().item_double();
    }

    @Override
    public String toString() {
        return name;
    }
}
