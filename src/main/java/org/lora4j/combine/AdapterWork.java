package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;

/** The folder of an adapter in the making: nothing is in it before all is known. */
final class AdapterWork {
    private final Path out;

    /** @throws IllegalArgumentException if the folder holds an adapter */
    AdapterWork(Path out) {
        for (String name : new String[] {AdapterConfigJson.FILE_NAME, AdapterFolder.SAFETENSORS, AdapterFolder.BIN}) {
            if (Files.exists(out.resolve(name))) {
                throw new IllegalArgumentException(out + " holds " + name + " already: write to another folder");
            }
        }
        this.out = out;
    }

    PartFiles parts() throws IOException {
        return new PartFiles(out.resolve(".parts"));
    }

    /** Writes the tensors, then the configuration, and removes the parts. */
    void finish(PartFiles parts, LoraConfig config) throws IOException {
        parts.assemble(out.resolve(AdapterFolder.SAFETENSORS));
        AdapterConfigJson.write(
                out.resolve(AdapterConfigJson.FILE_NAME),
                config.toBuilder()
                        .inferenceMode(true)
                        .peftVersion(LoraConfig.PEFT_VERSION)
                        .build());
        parts.delete();
    }
}
