package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Reads files PyTorch wrote; files.py makes them and states what PyTorch itself reads from them. */
class PyTorchFileTest {
    @TempDir
    Path folder;

    @ParameterizedTest
    @ValueSource(
            strings = {
                "dtypes",
                "views",
                "module",
                "nothing",
                "legacy_dtypes",
                "legacy_views",
                "legacy_module",
                "big_endian_dtypes",
                "big_endian_views"
            })
    void everyTensorIsTheOnePyTorchReads(String name) throws IOException {
        try (TensorFile file = TensorFile.open(Golden.path("format/bin/" + name + ".bin"));
                SafetensorsFile expected = SafetensorsFile.open(Golden.path("format/bin/" + name + ".safetensors"))) {
            assertThat(file).isInstanceOf(PyTorchFile.class);
            assertThat(file.metadata()).isEmpty();
            assertThat(file.tensors().keySet())
                    .containsExactlyInAnyOrderElementsOf(expected.tensors().keySet());
            for (TensorInfo info : expected.tensors().values()) {
                assertThat(file.tensor(info.name())).hasToString(info.toString());
                ByteBuffer bytes = expected.read(info.name());
                assertThat(file.read(info.name())).as(info.name()).isEqualTo(bytes);
                ByteArrayOutputStream streamed = new ByteArrayOutputStream();
                file.source(info.name()).writeTo(Channels.newChannel(streamed));
                assertThat(ByteBuffer.wrap(streamed.toByteArray())).isEqualTo(bytes);
                if (file.place(info.name()).isPresent()) {
                    ByteBuffer all = ByteBuffer.wrap(Files.readAllBytes(file.path()));
                    int place = (int) file.place(info.name()).getAsLong();
                    assertThat(all.slice(place, (int) info.bytes())).isEqualTo(bytes);
                }
            }
        }
    }

    @Test
    void onlyTensorsInRowMajorOrderHaveAPlace() throws IOException {
        try (PyTorchFile file = PyTorchFile.open(Golden.path("format/bin/views.bin"))) {
            List<String> without = file.tensors().keySet().stream()
                    .filter(name -> file.place(name).isEmpty())
                    .toList();
            assertThat(without)
                    .containsExactly(
                            "columns",
                            "transposed",
                            "steps",
                            "expanded",
                            "half_transposed",
                            "permuted",
                            "complex",
                            "bytes",
                            "words",
                            "eights",
                            "channels_last");
            assertThat(file.place("again")).isEqualTo(file.place("whole"));
        }
        try (PyTorchFile file = PyTorchFile.open(Golden.path("format/bin/big_endian_dtypes.bin"))) {
            assertThat(file.place("uint8")).isPresent();
            assertThat(file.place("bfloat16")).isEmpty();
        }
    }

    @Test
    void theBinOfPeftHoldsWhatItsSafetensorsHolds() throws IOException {
        Path bin = AdapterFolder.tensors(Golden.path("format/adapter_bin"));
        Path safetensors = AdapterFolder.tensors(Golden.path("format/adapter_safetensors"));
        try (TensorFile a = TensorFile.open(bin);
                TensorFile b = TensorFile.open(safetensors)) {
            assertThat(a.tensors().keySet()).isEqualTo(b.tensors().keySet()).hasSize(6);
            for (String name : a.tensors().keySet()) {
                assertThat(a.tensor(name)).hasToString(b.tensor(name).toString());
                assertThat(a.read(name)).isEqualTo(b.read(name));
            }
        }
    }

    @Test
    void safetensorsComeFirstAndAMissingFileIsNamed() throws IOException {
        assertThatThrownBy(() -> AdapterFolder.tensors(folder))
                .isInstanceOf(java.nio.file.NoSuchFileException.class)
                .hasMessageContaining("adapter_model.safetensors nor adapter_model.bin");
        Path bin = Files.write(folder.resolve("adapter_model.bin"), new byte[0]);
        assertThat(AdapterFolder.tensors(folder)).isEqualTo(bin);
        Path safetensors = Files.write(folder.resolve("adapter_model.safetensors"), new byte[0]);
        assertThat(AdapterFolder.tensors(folder)).isEqualTo(safetensors);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "command|asks for the global posix.system",
                "legacy_command|asks for the global posix.system",
                "evaluation|asks for the global __builtin__.eval",
                "class|asks for the global files.Holder",
                "nested|holds a dict under \"state_dict\" instead of a tensor",
                "list|holds a list instead of a dict of tensors",
                "tensor|holds a tensor instead of a dict of tensors",
                "number|holds a whole number under \"epoch\" instead of a tensor",
                "text|holds a string under \"w\"",
                "none|holds None under \"w\"",
                "number_key|it has a whole number where a string belongs",
                "whole_module|asks for the global torch.nn.modules.linear.Linear",
                "sparse|asks for the global torch._utils._rebuild_sparse_tensor",
                "quantized|asks for the global torch._utils._rebuild_qtensor",
                "complex128|asks for the global torch.ComplexDoubleStorage",
                "conjugated|a tensor is conjugated",
                "attribute|asks for the global torch._tensor._rebuild_from_type_v2",
                "protocol4|it has pickle protocol 4",
                "script|is a TorchScript program",
                "pickle|begins neither as a zip nor as a pickle of torch.save",
                "text_file|begins neither as a zip nor as a pickle of torch.save"
            })
    void anythingButTensorsIsRefused(String name, String message) {
        Path file = Golden.path("format/refused/" + name + ".bin");
        assertThatThrownBy(() -> TensorFile.open(file))
                .isInstanceOf(FormatException.class)
                .hasMessageStartingWith(file + ": ")
                .hasMessageContaining(message)
                .hasMessageMatching(".*(safetensors|state dict).*");
        assertThat(Path.of("lora4j-was-here")).doesNotExist();
    }

    @Test
    void whatPyTorchRefusesAndMoreIsRefused() throws IOException {
        Map<String, Object> rows = StrictJson.readObject(Golden.path("format/refused/torch.json"), 1 << 20);
        assertThat(rows.values()).contains(true, false);
        for (String name : rows.keySet()) {
            Path file = Golden.path("format/refused/" + name + ".bin");
            assertThatThrownBy(() -> PyTorchFile.open(file)).as(name).isInstanceOf(FormatException.class);
        }
    }

    @Test
    void anUnknownTensorIsNamed() throws IOException {
        try (PyTorchFile file = PyTorchFile.open(Golden.path("format/bin/views.bin"))) {
            assertThatThrownBy(() -> file.read("w"))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("has no tensor \"w\"; it has 17");
        }
    }
}
