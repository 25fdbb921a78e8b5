package server

import (
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// status writes how logs and machine are doing.
func (c *call) status() error {
	s, err := c.s.status()
	if err != nil {
		return err
	}
	writeJSON(c.w, http.StatusOK, s)
	return nil
}

func (s *server) status() (*api.Status, error) {
	out := &api.Status{}
	if s.cfg.Status != nil {
		out.Machine = s.cfg.Status()
	}
	for _, l := range s.cfg.Logs {
		st, err := l.Ledger.Status()
		if err != nil {
			return nil, err
		}
		genesis := l.Ledger.State().Genesis
		one := api.LogStatus{
			Name: l.Name, Origin: st.Origin, Size: st.Size, Checkpoint: string(st.Checkpoint), VKeys: st.VKeys, Genesis: hex.EncodeToString(genesis[:]),
			LastFault: st.LastFault, Waiting: st.Waiting, Entries: st.Stats.Entries, Batches: st.Stats.Batches,
		}
		for code, n := range st.Stats.Refused {
			if one.Refused == nil {
				one.Refused = map[string]uint64{}
			}
			one.Refused[string(code)] = n
		}
		one.Refusing = s.refusing(l.Ledger, st.Refusing)
		out.Logs = append(out.Logs, one)
	}
	return out, nil
}

// refusing is why a log takes no events now: by the sealer's order, or for the clock; nil when it takes them.
func (s *server) refusing(l *ledger.Ledger, held *ledger.Refusal) *api.FailureDetail {
	if held != nil {
		return &api.FailureDetail{Code: held.Code, Message: held.Message}
	}
	if s.cfg.Now == nil {
		return nil
	}
	if err := l.State().Policy.Clock.Allows(s.cfg.Now()); err != nil {
		return &api.FailureDetail{Code: record.CodeClock, Message: err.Error()}
	}
	return nil
}

// alive says that the process answers.
func (c *call) alive() error {
	writeJSON(c.w, http.StatusOK, map[string]string{"status": "alive"})
	return nil
}

// ready says whether events are taken, as far as is known without trying.
func (c *call) ready() error {
	s, err := c.s.status()
	if err != nil {
		return err
	}
	for _, l := range s.Logs {
		if l.Refusing != nil {
			writeJSON(c.w, http.StatusServiceUnavailable, api.Failure{Error: *l.Refusing})
			return nil
		}
	}
	writeJSON(c.w, http.StatusOK, map[string]string{"status": "ready"})
	return nil
}

// state says what is refused, by log.
func (c *call) state() error {
	s, err := c.s.status()
	if err != nil {
		return err
	}
	out := map[string]any{}
	for _, l := range s.Logs {
		if l.Refusing != nil {
			out[l.Name] = l.Refusing
		} else {
			out[l.Name] = map[string]record.Code{"code": "ok"}
		}
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// metrics writes all numbers in Prometheus's text format.
func (c *call) metrics() error {
	r := prometheus.NewRegistry()
	if err := r.Register(collector{c.s}); err != nil {
		return err
	}
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(c.w, c.r)
	return nil
}

// collector reads the logs' counters when asked.
type collector struct{ s *server }

var (
	logSize  = prometheus.NewDesc("bulla_log_size", "Entries in the log.", []string{"log"}, nil)
	appended = prometheus.NewDesc("bulla_entries_total", "Entries committed since the start.", []string{"log"}, nil)
	batches  = prometheus.NewDesc("bulla_batches_total", "Batches committed since the start: one signature and one commit each.", []string{"log"}, nil)
	refused  = prometheus.NewDesc("bulla_refused_total", "Requests refused since the start, by code.", []string{"log", "code"}, nil)
	faults   = prometheus.NewDesc("bulla_faults_total", "Batches that failed for a device's or the disk's sake since the start.", []string{"log"}, nil)
	waiting  = prometheus.NewDesc("bulla_queue_events", "Events waiting to be sequenced.", []string{"log"}, nil)
	signing  = prometheus.NewDesc("bulla_sign_seconds_total", "Time spent in signatures.", []string{"log"}, nil)
	writing  = prometheus.NewDesc("bulla_commit_seconds_total", "Time spent in commits.", []string{"log"}, nil)
	refusing = prometheus.NewDesc("bulla_refusing", "1 while events are refused, by order of the sealer or for the clock.", []string{"log"}, nil)
)

// Describe names nothing in advance: the numbers of the machine depend on its devices.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the numbers.
func (c collector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, l := range c.s.cfg.Logs {
		st, err := l.Ledger.Status()
		if err != nil {
			out <- prometheus.NewInvalidMetric(logSize, err)
			continue
		}
		send(logSize, prometheus.GaugeValue, float64(st.Size), l.Name)
		send(appended, prometheus.CounterValue, float64(st.Stats.Entries), l.Name)
		send(batches, prometheus.CounterValue, float64(st.Stats.Batches), l.Name)
		send(faults, prometheus.CounterValue, float64(st.Stats.Faults), l.Name)
		send(waiting, prometheus.GaugeValue, float64(st.Waiting), l.Name)
		send(signing, prometheus.CounterValue, st.Stats.SignTime.Seconds(), l.Name)
		send(writing, prometheus.CounterValue, st.Stats.CommitTime.Seconds(), l.Name)
		held := 0.0
		if c.s.refusing(l.Ledger, st.Refusing) != nil {
			held = 1
		}
		send(refusing, prometheus.GaugeValue, held, l.Name)
		for code, n := range st.Stats.Refused {
			send(refused, prometheus.CounterValue, float64(n), l.Name, string(code))
		}
	}
	if c.s.cfg.Gauges == nil {
		return
	}
	for name, v := range c.s.cfg.Gauges() {
		send(prometheus.NewDesc(name, "Of the machine: "+strings.ReplaceAll(strings.TrimPrefix(name, "bulla_"), "_", " ")+".", nil, nil), prometheus.GaugeValue, v)
	}
}
