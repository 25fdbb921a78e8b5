package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"bulla/record"
)

// Gauge is a number of the machine's for /metrics, or a counter. Those of one name have the same labels and help.
type Gauge struct {
	Name, Help string
	Counter    bool // it only grows; its name ends in _total
	Labels     []Label
	Value      float64
}

// Label is a label of a number, and its value.
type Label struct{ Name, Value string }

// metrics are the server's own numbers, and where those of logs and machine are read when somebody asks.
type metrics struct {
	registry *prometheus.Registry
	answers  *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	taken    map[string]taken // by log
}

// taken counts the requests that a log took.
type taken struct {
	count   prometheus.Counter
	seconds prometheus.Observer
}

func newMetrics(s *server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulla_appends_total", Help: "Requests to append, by log and answer: ok, unknown, or the code of the refusal.",
		}, []string{"log", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bulla_append_seconds", Help: "From a request that was read to its events being durable and signed.", Buckets: prometheus.ExponentialBuckets(250e-6, 2, 16),
		}, []string{"log"}),
		taken: map[string]taken{},
	}
	m.registry.MustRegister(m.answers, m.latency, collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, l := range s.cfg.Logs {
		m.taken[l.Name] = taken{m.answers.WithLabelValues(l.Name, "ok"), m.latency.WithLabelValues(l.Name)}
	}
	return m
}

// appended counts a request that a ledger answered.
func (m *metrics) appended(log string, err error, took time.Duration) {
	if err != nil {
		r, _ := refusal(err)
		m.answered(log, r.Code)
		return
	}
	t := m.taken[log]
	t.count.Inc()
	t.seconds.Observe(took.Seconds())
}

// answered counts a request by its answer.
func (m *metrics) answered(log string, code record.Code) {
	m.answers.WithLabelValues(log, string(code)).Inc()
}

// metrics writes all numbers in Prometheus's text format.
func (c *call) metrics() error {
	promhttp.HandlerFor(c.s.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(c.w, c.r)
	return nil
}

// collector reads the logs' counters when asked.
type collector struct{ s *server }

var (
	logSize  = prometheus.NewDesc("bulla_log_size", "Entries in the log.", []string{"log"}, nil)
	entries  = prometheus.NewDesc("bulla_entries_total", "Entries committed since the start.", []string{"log"}, nil)
	batches  = prometheus.NewDesc("bulla_batches_total", "Batches committed since the start: one signature and one commit each.", []string{"log"}, nil)
	faults   = prometheus.NewDesc("bulla_faults_total", "Batches that failed for a device's or the disk's sake since the start.", []string{"log"}, nil)
	waiting  = prometheus.NewDesc("bulla_queue_events", "Events waiting to be sequenced.", []string{"log"}, nil)
	signing  = prometheus.NewDesc("bulla_sign_seconds_total", "Time spent in signatures.", []string{"log"}, nil)
	writing  = prometheus.NewDesc("bulla_commit_seconds_total", "Time spent in commits.", []string{"log"}, nil)
	refusing = prometheus.NewDesc("bulla_refusing", "1 while the log takes no events, with the code that they are refused with.", []string{"log", "code"}, nil)
	conns    = prometheus.NewDesc("bulla_connections", "Connections to the socket.", []string{"socket"}, nil)
	memory   = prometheus.NewDesc("bulla_request_bytes", "Bytes of requests under way and of answers waiting to be read.", []string{"socket"}, nil)
)

// Describe names nothing in advance: the numbers of the machine depend on its devices.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the numbers.
func (c collector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for i := range c.s.cfg.Logs {
		l := &c.s.cfg.Logs[i]
		st, err := l.Ledger.Status()
		if err != nil {
			out <- prometheus.NewInvalidMetric(logSize, err)
			continue
		}
		send(logSize, prometheus.GaugeValue, float64(st.Size), l.Name)
		send(entries, prometheus.CounterValue, float64(st.Stats.Entries), l.Name)
		send(batches, prometheus.CounterValue, float64(st.Stats.Batches), l.Name)
		send(faults, prometheus.CounterValue, float64(st.Stats.Faults), l.Name)
		send(waiting, prometheus.GaugeValue, float64(st.Waiting), l.Name)
		send(signing, prometheus.CounterValue, st.Stats.SignTime.Seconds(), l.Name)
		send(writing, prometheus.CounterValue, st.Stats.CommitTime.Seconds(), l.Name)
		if r := c.s.unfit(l); r != nil {
			send(refusing, prometheus.GaugeValue, 1, l.Name, string(r.Code))
		} else {
			send(refusing, prometheus.GaugeValue, 0, l.Name, "")
		}
	}
	for socket, b := range map[string]*budget{"sign": c.s.frames, "http": c.s.http} {
		used := b.inUse()
		send(conns, prometheus.GaugeValue, float64(used.conns), socket)
		send(memory, prometheus.GaugeValue, float64(used.bytes), socket)
	}
	if c.s.cfg.Gauges == nil {
		return
	}
	for _, g := range c.s.cfg.Gauges() {
		kind := prometheus.GaugeValue
		if g.Counter {
			kind = prometheus.CounterValue
		}
		var names, values []string
		for _, l := range g.Labels {
			names, values = append(names, l.Name), append(values, l.Value)
		}
		send(prometheus.NewDesc(g.Name, g.Help, names, nil), kind, g.Value, values...)
	}
}
