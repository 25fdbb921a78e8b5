package main

import (
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"bulla/api/server"
	"bulla/clock"
	"bulla/clock/ntp"
)

// gauges are a status's metrics as Prometheus collects them.
type gauges []server.Gauge

func (g gauges) Describe(chan<- *prometheus.Desc) {}

func (g gauges) Collect(out chan<- prometheus.Metric) {
	for _, x := range g {
		var names, values []string
		for _, l := range x.Labels {
			names, values = append(names, l.Name), append(values, l.Value)
		}
		kind := prometheus.GaugeValue
		if x.Counter {
			kind = prometheus.CounterValue
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(x.Name, x.Help, names, nil), kind, x.Value, values...)
	}
}

// collected is the text that Prometheus reads.
func collected(t *testing.T, g gauges) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(g)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// The clock's metrics follow Prometheus's conventions, and those of an estimate are absent without one.
func TestClockMetrics(t *testing.T) {
	t.Parallel()
	s := ntp.Status{
		Stamp:  clock.Stamp{State: clock.Holdover, HasEstimate: true, Offset: -1_500_000, Bound: 2_000_000, Age: 3_000_000_000},
		Policy: clock.DefaultPolicy(), Rounds: 12, Failed: 3,
		Round: &clock.Round{Alarms: []string{clock.AlarmRate}, Drift: &clock.Drift{Rate: -2_500, Sigma: 100}},
		Sources: []ntp.SourceStatus{
			{Name: "a", Verdict: clock.OK, Offset: 250, Verdicts: map[string]uint64{clock.OK: 12}},
			{Name: `b"`, Verdict: clock.Rejected, Verdicts: map[string]uint64{clock.Falseticker: 2, clock.Rejected: 10}},
		},
	}
	text := collected(t, clockGauges(s))
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v %v", problems, err)
	}
	for want := range strings.Lines(`# TYPE bulla_clock_drift_ratio gauge
bulla_clock_drift_ratio -2.5e-06
# TYPE bulla_clock_offset_seconds gauge
bulla_clock_offset_seconds -0.0015
# TYPE bulla_clock_rounds_total counter
bulla_clock_rounds_total{result="failed"} 3
bulla_clock_rounds_total{result="ok"} 9
# TYPE bulla_clock_source_offset_seconds gauge
bulla_clock_source_offset_seconds{source="a"} 2.5e-07
# TYPE bulla_clock_source_verdicts_total counter
bulla_clock_source_verdicts_total{source="a",verdict="falseticker"} 0
bulla_clock_source_verdicts_total{source="a",verdict="ok"} 12
bulla_clock_source_verdicts_total{source="a",verdict="rejected"} 0
bulla_clock_source_verdicts_total{source="b\"",verdict="falseticker"} 2
bulla_clock_source_verdicts_total{source="b\"",verdict="ok"} 0
bulla_clock_source_verdicts_total{source="b\"",verdict="rejected"} 10
# TYPE bulla_clock_state gauge
bulla_clock_state{state="disrupted"} 0
bulla_clock_state{state="holdover"} 1
bulla_clock_state{state="synced"} 0
bulla_clock_state{state="unknown"} 0
bulla_clock_state{state="unsynced"} 0
`) {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`bulla_clock_[a-z_]+`).FindAllString(string(doc), -1) {
		if !strings.Contains(text, "# TYPE "+name+" ") {
			t.Errorf("docs/operations.md names %s, which is no metric", name)
		}
	}
	names := func(g []server.Gauge) (out []string) {
		for _, x := range g {
			out = append(out, x.Name)
		}
		return out
	}
	without := names(clockGauges(ntp.Status{}))
	for _, name := range []string{"bulla_clock_offset_seconds", "bulla_clock_bound_seconds", "bulla_clock_drift_ratio"} {
		if slices.Contains(without, name) {
			t.Errorf("without an estimate there is %s", name)
		}
	}
}
