package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;

import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;

/** A weight merged and unmerged a thousand times, each time with other adapters, keeps every bit. */
class ResidualCyclesTest {
    private static final int CYCLES = 1000;

    private final Residual residual = new DeflatedResidual();

    @ParameterizedTest
    @EnumSource(names = {"Float", "BFloat16", "Half", "Float8_e4m3fn"})
    void aThousandCyclesEndWithTheSameHash(ScalarType type) throws Exception {
        Random random = new Random(type.ordinal());
        try (PointerScope scope = new PointerScope()) {
            Tensor weight = noise(random, 37, 53).to(type);
            Tensor drifting = weight.clone();
            String before = hash(weight);
            int changed = 0;
            for (int cycle = 0; cycle < CYCLES; cycle++) {
                try (PointerScope step = new PointerScope()) {
                    List<LowRank> updates = updates(random, 1 + cycle % 3);
                    Tensor original = weight.clone();
                    Ops.current().merge(weight, updates);
                    changed += hash(weight).equals(before) ? 0 : 1;
                    byte[] kept = residual.encode(original, weight, updates);
                    residual.decode(kept, weight, updates, weight);
                    assertThat(hash(weight)).as("cycle %d", cycle).isEqualTo(before);

                    Ops.current().merge(drifting, updates);
                    Ops.current().merge(drifting, negated(updates));
                }
            }
            assertThat(changed).isEqualTo(CYCLES);
            // Without the residual the roundings remain, so the test would notice one that does nothing.
            assertThat(hash(drifting)).isNotEqualTo(before);
        }
    }

    private static List<LowRank> updates(Random random, int count) {
        List<LowRank> updates = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            int rank = 1 + random.nextInt(9);
            updates.add(new LowRank(noise(random, rank, 53), noise(random, 37, rank), random.nextGaussian()));
        }
        return updates;
    }

    private static List<LowRank> negated(List<LowRank> updates) {
        return updates.stream()
                .map(each -> new LowRank(each.a(), each.b(), -each.scale()))
                .toList();
    }

    private static Tensor noise(Random random, int rows, int columns) {
        float[] values = new float[rows * columns];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        Tensor tensor = torch.empty(rows, columns);
        new FloatPointer(tensor.data_ptr()).put(values);
        return tensor;
    }

    private static String hash(Tensor tensor) throws Exception {
        byte[] bytes = new byte[(int) tensor.nbytes()];
        new BytePointer(tensor.data_ptr()).get(bytes);
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    }
}
