package org.lora4j.combine;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.function.BiFunction;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.RowNorms;
import org.lora4j.ops.LibTorch;

/** The combination at one layer against rules written out with loops. */
class CombinedTest {
    private static final int OUT = 13;
    private static final int IN = 17;
    private static final double[] WEIGHTS = {0.8, -0.5, 1.3};

    static {
        LibTorch.load();
    }

    private PointerScope scope;
    private NoGradGuard guard;

    @BeforeEach
    void open() {
        scope = new PointerScope();
        guard = new NoGradGuard();
    }

    @AfterEach
    void close() {
        guard.close();
        scope.close();
    }

    private static LayerInput.Member member(int adapter, int rank, double weight) {
        Tensor a = Dense.normal(10 + adapter, rank, IN);
        Tensor b = Dense.normal(20 + adapter, OUT, rank);
        return new LayerInput.Member(adapter, a, b, 0.5 + adapter, weight, null, null);
    }

    private static List<LayerInput.Member> members(int... ranks) {
        List<LayerInput.Member> members = new ArrayList<>();
        for (int i = 0; i < ranks.length; i++) {
            members.add(member(i, ranks[i], WEIGHTS[i]));
        }
        return members;
    }

    private static LayerResult combine(List<LayerInput.Member> members, CombineOptions options) {
        return combine(members, options, Uniform.seeded(options.seed(), "layer"));
    }

    private static LayerResult combine(List<LayerInput.Member> members, CombineOptions options, Uniform uniform) {
        try (Combined combined = Combined.of(new LayerInput("layer", members, null), options, uniform)) {
            return combined.at(combined.rank(options.rank()), ScalarType.Double, false, false);
        }
    }

    private static CombineOptions.Builder options(CombinationType type) {
        CombineOptions.Builder builder = CombineOptions.builder(type);
        return builder;
    }

    private static double[][] arrays(List<LayerInput.Member> members) {
        return members.stream().map(Dense::update).map(Dense::array).toArray(double[][]::new);
    }

    private static void assertNear(Tensor actual, Tensor expected) {
        assertThat(Dense.largestDifference(actual, expected)
                        / expected.abs().max().item_double())
                .isLessThan(2e-6);
    }

    private static Tensor sum(List<LayerInput.Member> members) {
        return Dense.tensor(
                Dense.sum(
                        arrays(members),
                        members.stream().mapToDouble(LayerInput.Member::weight).toArray()),
                OUT);
    }

    @ParameterizedTest
    @CsvSource({"LINEAR, 1, 4, 2", "CAT, 2, 1, 3", "EXACT, 5, 5, 1", "LINEAR, 7, 8, 9", "EXACT, 6, 6, 6"})
    void sumsAreExact(CombinationType type, int one, int two, int three) {
        List<LayerInput.Member> members = members(one, two, three);
        LayerResult result = combine(members, CombineOptions.of(type));
        assertNear(Dense.product(result), sum(members));
        int most = type == CombinationType.CAT ? one + two + three : Math.min(OUT, one + two + three);
        assertThat(result.report().rank()).isEqualTo(most);
        assertThat(result.report().norm())
                .isCloseTo(
                        sum(members).norm().item_double(),
                        within(1e-5 * result.report().norm()));
    }

    @Test
    void theNumericalRankSeesRepeatedDirections() {
        LayerInput.Member one = member(0, 3, 1);
        LayerInput.Member same = new LayerInput.Member(1, one.a(), one.b(), 2, -0.125, null, null);
        LayerResult result = combine(List.of(one, same), CombineOptions.of(CombinationType.EXACT));
        assertThat(result.report().rank()).isEqualTo(3);
        assertNear(Dense.product(result), Dense.update(one).mul(new Scalar(0.5)));
        assertThat(result.report().cosines().get(0).get(1)).isCloseTo(-1, within(1e-12));
        assertThat(result.report().signConflict()).isEqualTo(1);
        LayerInput.Member opposite = new LayerInput.Member(1, one.a(), one.b(), 2, -0.25, null, null);
        LayerResult nothing = combine(List.of(one, opposite), CombineOptions.of(CombinationType.EXACT));
        assertThat(nothing.report().rank()).isEqualTo(1);
        assertThat(nothing.report().norm()).isLessThan(1e-12);
    }

    @Test
    void svdIsTheBestApproximationOfItsRank() {
        List<LayerInput.Member> members = members(4, 3, 2);
        LayerResult result =
                combine(members, options(CombinationType.SVD).rank(5).build());
        double[] values = Components.Svd.of(sum(members)).s();
        double left = 0;
        double all = 0;
        for (int i = 0; i < values.length; i++) {
            all += values[i] * values[i];
            left += i < 5 ? 0 : values[i] * values[i];
        }
        double error = Dense.product(result).sub(sum(members)).norm().item_double();
        assertThat(error).isCloseTo(Math.sqrt(left), within(1e-6 * Math.sqrt(all)));
        assertThat(result.report().energy()).isCloseTo(1 - left / all, within(1e-9));
        for (int i = 0; i < 9; i++) {
            assertThat(result.report().values().get(i)).isCloseTo(values[i], within(1e-6 * values[0]));
        }
    }

    @ParameterizedTest
    @EnumSource(
            value = CombinationType.class,
            names = {"SVD", "LINEAR", "CAT", "EXACT", "TIES", "MAGNITUDE_PRUNE_SVD"})
    void aZeroBIsNoUpdate(CombinationType type) {
        LayerInput.Member one = member(0, 3, 1);
        LayerInput.Member zero = new LayerInput.Member(0, one.a(), torch.zeros(new long[] {OUT, 3}), 1, 1, null, null);
        CombineOptions.Builder builder = options(type);
        if (type.needsDensity()) {
            builder.density(1);
        }
        LayerResult alone = combine(List.of(zero), builder.build());
        assertThat(Dense.array(Dense.product(alone))).containsOnly(0);
        assertThat(alone.report().energy()).isEqualTo(1);
    }

    /** The whole spectrum, so that nothing but the rule decides. */
    private static void follows(
            CombineOptions.Builder options, BiFunction<double[][], double[], double[]> rule, int... ranks) {
        List<LayerInput.Member> members = members(ranks);
        double[] weights =
                members.stream().mapToDouble(LayerInput.Member::weight).toArray();
        LayerResult result = combine(members, options.rank(OUT).build());
        assertNear(Dense.product(result), Dense.tensor(rule.apply(arrays(members), weights), OUT));
    }

    @ParameterizedTest
    @CsvSource({"0.3, false", "0.3, true", "0.77, false", "1, true", "0.01, false"})
    void tiesTrimsElectsWithWeightsAndAverages(double density, boolean frequency) {
        int kept = (int) (density * OUT * IN);
        follows(
                options(CombinationType.TIES)
                        .density(density)
                        .majoritySign(frequency ? MajoritySign.FREQUENCY : MajoritySign.TOTAL),
                (values, weights) -> {
                    for (int i = 0; i < values.length; i++) {
                        values[i] = Dense.trimmed(values[i], kept, 0);
                    }
                    return Dense.elected(values, weights, frequency);
                },
                2,
                3,
                1);
    }

    @ParameterizedTest
    @ValueSource(doubles = {0.2, 0.5})
    void magnitudePruneAddsWhatIsLarge(double density) {
        int kept = (int) (density * OUT * IN);
        follows(
                options(CombinationType.MAGNITUDE_PRUNE).density(density),
                (values, weights) -> {
                    for (int i = 0; i < values.length; i++) {
                        values[i] = Dense.trimmed(values[i], kept, 0);
                    }
                    return Dense.sum(values, weights);
                },
                4,
                1);
    }

    @Test
    void breadcrumbsDropsTheSmallAndTheLargest() {
        int size = OUT * IN;
        follows(
                options(CombinationType.BREADCRUMBS).density(0.4).gamma(0.05),
                (values, weights) -> {
                    for (int i = 0; i < values.length; i++) {
                        values[i] = Dense.trimmed(values[i], (int) (0.4 * size), (int) (0.05 * size));
                    }
                    return Dense.sum(values, weights);
                },
                3,
                2);
    }

    @ParameterizedTest
    @ValueSource(doubles = {0.1, 0.6, 1})
    void sceSelectsCalculatesAndErases(double density) {
        follows(
                options(CombinationType.SCE).density(density),
                (values, weights) -> Dense.sce(values, weights, (int) (density * OUT * IN)),
                2,
                2,
                3);
    }

    @Test
    void dellaKeepsLargeElementsMoreOften() {
        List<LayerInput.Member> members = members(3);
        double epsilon = 0.4;
        double density = 0.5;
        // Everything below a fixed draw stays: the chance of an element must be above it.
        Uniform same = (adapter, what, from, count, columns) ->
                torch.zeros(new long[] {count, columns}).add(new Scalar(0.46));
        LayerResult result = combine(
                members,
                options(CombinationType.DELLA)
                        .density(density)
                        .epsilon(epsilon)
                        .rank(OUT)
                        .build(),
                same);
        double[] update = Dense.array(Dense.update(members.get(0)));
        double[] expected = new double[update.length];
        for (int row = 0; row < OUT; row++) {
            for (int column = 0; column < IN; column++) {
                double own = update[row * IN + column];
                int smaller = 0;
                for (int other = 0; other < IN; other++) {
                    smaller += Math.abs(update[row * IN + other]) < Math.abs(own) ? 1 : 0;
                }
                double chance = density - epsilon / 2 + epsilon * smaller / (IN - 1);
                expected[row * IN + column] = chance > 0.46 ? WEIGHTS[0] * own / chance : 0;
            }
        }
        assertNear(Dense.product(result), Dense.tensor(expected, OUT));
    }

    @Test
    void dareDropsByTheDrawAndRescales() {
        List<LayerInput.Member> members = members(2, 3);
        CombineOptions options = options(CombinationType.DARE_LINEAR)
                .density(0.3)
                .rank(OUT)
                .seed(7)
                .build();
        Uniform uniform = Uniform.seeded(7, "layer");
        Tensor expected = torch.zeros(new long[] {OUT, IN}).to(ScalarType.Double);
        for (LayerInput.Member member : members) {
            Tensor keep = uniform.tile(member.adapter(), "delta", 0, OUT, IN).lt(new Scalar(0.3));
            expected = expected.add(Dense.update(member).mul(keep).mul(new Scalar(member.weight() / 0.3)));
        }
        LayerResult result = combine(members, options);
        assertNear(Dense.product(result), expected);
        assertThat(Dense.largestDifference(Dense.product(result), Dense.product(combine(members, options))))
                .isZero();
        CombineOptions other = options(CombinationType.DARE_LINEAR)
                .density(0.3)
                .rank(OUT)
                .seed(8)
                .build();
        assertThat(Dense.largestDifference(Dense.product(result), Dense.product(combine(members, other))))
                .isGreaterThan(0.1);
    }

    @Test
    void slerpGoesAlongTheArc() {
        LayerInput.Member one = member(0, 3, 0.25);
        LayerInput.Member two = member(1, 2, 0.75);
        LayerResult result = combine(List.of(one, two), CombineOptions.of(CombinationType.SLERP));
        Tensor first = Dense.update(one);
        Tensor second = Dense.update(two);
        double angle = Math.acos(first.mul(second).sum().item_double()
                / first.norm().item_double()
                / second.norm().item_double());
        Tensor expected = first.mul(new Scalar(Math.sin(0.25 * angle) / Math.sin(angle)))
                .add(second.mul(new Scalar(Math.sin(0.75 * angle) / Math.sin(angle))));
        assertNear(Dense.product(result), expected);
    }

    @Test
    void coreSpaceSumsAreThoseOfTheUpdates() {
        List<LayerInput.Member> members = members(3, 2, 2);
        // All elements stay and nothing is elected: the space makes no difference.
        CombineOptions options = options(CombinationType.MAGNITUDE_PRUNE)
                .density(1)
                .space(MergeSpace.CORE)
                .build();
        assertNear(Dense.product(combine(members, options)), sum(members));
    }

    @Test
    void coreSpaceElectsOnTheCores() {
        List<LayerInput.Member> members = members(3, 2);
        CombineOptions options = options(CombinationType.TIES)
                .density(0.5)
                .space(MergeSpace.CORE)
                .build();
        Tensor bs = torch.cat(
                new org.bytedeco.pytorch.TensorVector(
                        members.get(0).b(), members.get(1).b()),
                1);
        Tensor as = torch.cat(
                new org.bytedeco.pytorch.TensorVector(
                        members.get(0).a().mul(new Scalar(0.5)),
                        members.get(1).a().mul(new Scalar(1.5))),
                0);
        Tensor left = Components.Svd.of(bs.to(ScalarType.Double)).u();
        Tensor right = Components.Svd.of(as.to(ScalarType.Double).t()).u();
        double[][] cores = members.stream()
                .map(member -> left.t().matmul(Dense.update(member)).matmul(right))
                .map(core -> Dense.trimmed(Dense.array(core), 12, 0))
                .toArray(double[][]::new);
        Tensor elected = Dense.tensor(Dense.elected(cores, new double[] {0.8, -0.5}, false), 5);
        assertNear(
                Dense.product(combine(members, options)), left.matmul(elected).matmul(right.t()));
    }

    @Test
    void doraIsCombinedAsWhatItDoesToTheWeight() {
        Tensor base = Dense.normal(3, OUT, IN);
        List<LayerInput.Member> members = new ArrayList<>();
        Tensor expected = base.to(ScalarType.Double);
        for (int i = 0; i < 2; i++) {
            LayerInput.Member plain = member(i, 2 + i, WEIGHTS[i]);
            Tensor magnitude = Dense.normal(40 + i, OUT).abs().add(new Scalar(3.0));
            members.add(new LayerInput.Member(i, plain.a(), plain.b(), plain.scale(), plain.weight(), null, magnitude));
            Tensor changed = base.to(ScalarType.Double).add(Dense.update(plain));
            Tensor norms = changed.square().sum(1).sqrt();
            Tensor adapted =
                    changed.mul(magnitude.to(ScalarType.Double).div(norms).unsqueeze(1));
            expected = expected.add(adapted.sub(base.to(ScalarType.Double)).mul(new Scalar(plain.weight())));
        }
        LayerInput input = new LayerInput("layer", members, () -> base);
        try (Combined combined = Combined.of(input, CombineOptions.of(CombinationType.LINEAR))) {
            LayerResult result = combined.at(combined.rank(new RankRule.Numerical()), ScalarType.Double, false, true);
            Tensor changed = base.to(ScalarType.Double).add(Dense.product(result));
            Tensor norms = RowNorms.once(base, result.a(), result.b(), 1).to(ScalarType.Double);
            Tensor adapted = changed.mul(
                    result.magnitude().to(ScalarType.Double).div(norms).unsqueeze(1));
            assertNear(adapted, expected);
        }
    }

    @Test
    void biasesAddUp() {
        List<LayerInput.Member> members = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            LayerInput.Member plain = member(i, 2, WEIGHTS[i]);
            members.add(new LayerInput.Member(
                    i, plain.a(), plain.b(), plain.scale(), plain.weight(), Dense.normal(50 + i, OUT), null));
        }
        try (Combined combined =
                Combined.of(new LayerInput("layer", members, null), CombineOptions.of(CombinationType.CAT))) {
            Tensor bias = combined.at(4, ScalarType.Float, true, false).bias().to(ScalarType.Double);
            Tensor expected = Dense.normal(50, OUT)
                    .mul(new Scalar(0.8 * 0.5))
                    .add(Dense.normal(51, OUT).mul(new Scalar(-0.5 * 1.5)));
            assertNear(bias, expected.to(ScalarType.Double));
        }
    }

    @Test
    void halfTypesAndStridesAreRead() {
        LayerInput.Member plain = member(0, 3, 1);
        Tensor a = plain.a().t().contiguous().t().to(ScalarType.BFloat16);
        LayerInput.Member half = new LayerInput.Member(0, a, plain.b().to(ScalarType.BFloat16), 0.5, 0.8, null, null);
        LayerResult result = combine(List.of(half), CombineOptions.of(CombinationType.LINEAR));
        assertNear(Dense.product(result), Dense.update(half).mul(new Scalar(0.8)));
    }

    @Test
    void groupsOfAConvolutionStayApart() {
        List<LayerInput.Member> members = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            Tensor a = Dense.normal(60 + i, 4, 3, 2, 2);
            Tensor b = Dense.normal(70 + i, 6, 2, 1, 1);
            members.add(new LayerInput.Member(i, a, b, 0.7, WEIGHTS[i], null, null));
        }
        LayerResult result = combine(members, CombineOptions.of(CombinationType.LINEAR));
        assertThat(result.b().size(1)).isEqualTo(result.a().size(0) / 2);
        for (int group = 0; group < 2; group++) {
            Tensor expected = torch.zeros(new long[] {3, 12}).to(ScalarType.Double);
            for (LayerInput.Member each : members) {
                Tensor b = each.matrixB().narrow(0, group * 3, 3).to(ScalarType.Double);
                Tensor a = each.matrixA().narrow(0, group * 2, 2).to(ScalarType.Double);
                expected = expected.add(b.matmul(a).mul(new Scalar(0.7 * each.weight())));
            }
            long rank = result.b().size(1);
            Tensor b = result.b().flatten(1, -1).narrow(0, group * 3, 3);
            Tensor a = result.a().flatten(1, -1).narrow(0, group * rank, rank);
            assertNear(b.matmul(a), expected);
        }
    }

    @Test
    void wrongFactorsAreNamed() {
        LayerInput.Member good = member(0, 2, 1);
        Tensor nan = good.b().clone();
        nan.select(0, 2).fill_(new Scalar(Double.NaN));
        assertThatThrownBy(() -> new LayerInput(
                        "q", List.of(good, new LayerInput.Member(1, good.a(), nan, 1, 1, null, null)), null))
                .hasMessageContaining("adapter 2 at layer 'q'")
                .hasMessageContaining("not finite");
        assertThatThrownBy(() -> new LayerInput(
                        "q",
                        List.of(good, new LayerInput.Member(1, Dense.normal(1, 2, IN + 1), good.b(), 1, 1, null, null)),
                        null))
                .hasMessageContaining("only adapters of one base model");
        assertThatThrownBy(() -> new LayerInput(
                        "q",
                        List.of(new LayerInput.Member(0, good.a(), good.b(), 1, 1, null, Dense.normal(1, OUT))),
                        null))
                .hasMessageContaining("DoRA")
                .hasMessageContaining("give the base");
        assertThatThrownBy(() -> combine(
                        members(2, 3),
                        options(CombinationType.LINEAR)
                                .compat(Set.of(PeftCompat.COMBINES_FACTORS))
                                .build()))
                .hasMessageContaining("ranks [2, 3]");
    }
}
