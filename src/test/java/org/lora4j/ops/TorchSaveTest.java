package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.format.FormatException;

/** Files of torch.save as tensors; the safetensors beside each holds what PyTorch reads from it. */
class TorchSaveTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/format");

    @TempDir
    Path folder;

    @ParameterizedTest
    @ValueSource(
            strings = {"dtypes", "views", "module", "nothing", "legacy_dtypes", "legacy_views", "big_endian_views"})
    void everyTensorIsTheOnePyTorchReads(String name) throws IOException {
        try (PointerScope scope = new PointerScope();
                MappedTensors bin = TensorFiles.open(GOLDEN.resolve("bin/" + name + ".bin"));
                MappedTensors expected = TensorFiles.open(GOLDEN.resolve("bin/" + name + ".safetensors"))) {
            assertThat(bin.names()).containsExactlyInAnyOrderElementsOf(expected.names());
            for (String tensor : expected.names()) {
                Tensor value = bin.tensor(tensor);
                assertThat(Tensors.describe(value)).isEqualTo(Tensors.describe(expected.tensor(tensor)));
                assertThat(bits(value)).as(tensor).isEqualTo(bits(expected.tensor(tensor)));
            }
        }
    }

    private static byte[] bits(Tensor tensor) throws IOException {
        var out = new java.io.ByteArrayOutputStream();
        TensorFiles.source(tensor).writeTo(java.nio.channels.Channels.newChannel(out));
        return out.toByteArray();
    }

    @Test
    void tensorsOutliveTheFileAndLeaveItAlone() throws IOException {
        Path file = Files.copy(GOLDEN.resolve("bin/views.bin"), folder.resolve("adapter_model.bin"));
        byte[] before = Files.readAllBytes(file);
        try (PointerScope scope = new PointerScope()) {
            MappedTensors mapped = TensorFiles.open(file);
            Tensor whole = mapped.tensor("whole");
            Tensor transposed = mapped.tensor("transposed");
            assertThat(mapped.tensor("again").data_ptr().address())
                    .isEqualTo(whole.data_ptr().address());
            mapped.close();
            assertThatThrownBy(() -> mapped.tensor("whole")).isInstanceOf(IllegalArgumentException.class);
            assertThat(transposed.t().equal(whole)).isTrue();
            whole.fill_(new Scalar(7f));
            transposed.fill_(new Scalar(7f));
        }
        assertThat(Files.readAllBytes(file)).isEqualTo(before);
    }

    @Test
    void aPickleWithACommandMapsNothing() {
        assertThatThrownBy(() -> TensorFiles.open(GOLDEN.resolve("refused/command.bin")))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("posix.system");
    }
}
