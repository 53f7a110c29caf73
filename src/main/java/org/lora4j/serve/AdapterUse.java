package org.lora4j.serve;

/**
 * An adapter of a request.
 *
 * @param name the name of the adapter
 * @param factor multiplies its scale; 1 as trained
 */
public record AdapterUse(String name, double factor) {
    public AdapterUse {
        PoolOptions.require(Double.isFinite(factor), "factor", factor, "finite");
    }

    public static AdapterUse of(String name) {
        return new AdapterUse(name, 1);
    }
}
