package org.lora4j.combine;

import org.bytedeco.pytorch.Generator;
import org.bytedeco.pytorch.GeneratorOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** Where the elements to drop are drawn: numbers in [0, 1) for the tiles of an adapter's update. */
interface Uniform {
    /**
     * The numbers of a tile, the same whenever they are asked for.
     *
     * @param adapter the adapter's place among those combined
     * @param what which of an adapter's matrices at the layer: the update, A or B
     * @return float32 (count, columns) on the CPU
     */
    Tensor tile(int adapter, String what, long from, long count, long columns);

    /** Numbers that depend on a seed, the path of the layer, the adapter's place and the rows, and on nothing else. */
    static Uniform seeded(long seed, String path) {
        return (adapter, what, from, count, columns) -> {
            long key = mix(mix(mix(seed, path.hashCode()), adapter * 4L + what.hashCode()), from);
            try (Generator random = torch.make_generator_cpu(key);
                    GeneratorOptional given = new GeneratorOptional(random);
                    TensorOptions options = new TensorOptions(ScalarType.Float)) {
                return torch.rand(new long[] {count, columns}, given, options);
            }
        };
    }

    /** The finaliser of SplitMix64. */
    private static long mix(long state, long value) {
        long z = state * 0x9E3779B97F4A7C15L + value;
        z = (z ^ z >>> 30) * 0xBF58476D1CE4E5B9L;
        z = (z ^ z >>> 27) * 0x94D049BB133111EBL;
        return z ^ z >>> 31;
    }
}
