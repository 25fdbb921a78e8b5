package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func TestSelfCheckConfiguration(t *testing.T) {
	t.Parallel()
	for about, text := range map[string]string{
		"selfcheck.rate: must be from 4096": "rate = 1", "to 1073741824 bytes": "rate = 1073741825", "selfcheck.round": `round = "1ms"`, "selfcheck.sample": `sample = "169h"`,
	} {
		var c Config
		path := filepath.Join(t.TempDir(), "bullad.toml")
		if err := os.WriteFile(path, []byte("[selfcheck]\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := loadTOML(path, &c); err != nil {
			t.Fatal(err)
		}
		if err := c.SelfCheck.validate(); err == nil || !strings.Contains(err.Error(), about) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What a self-check found is 0 in the metrics from the start on, and a full round is shown when there was one.
func TestSelfCheckMetrics(t *testing.T) {
	t.Parallel()
	l := witnessedLog(t)
	lc := LogConfig{Name: "log", Origin: witnessedOrigin}
	a := &appliance{cfg: &Config{}, logs: []*openLog{{lc, l}}}
	a.openSelfCheck()
	before := collected(t, gauges(a.selfCheckGauges()))
	if !strings.Contains(before, `bulla_selfcheck_failures_total{log="log"} 0`) || strings.Contains(before, "round_age") || a.selfCheckStatus()[0].Last != nil {
		t.Errorf("%s", before)
	}
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- a.selfCheck.Run(ctx) }()
	for a.selfCheck.Status()[0].Rounds == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	after := collected(t, gauges(a.selfCheckGauges()))
	problems, err := promlint.New(strings.NewReader(after)).Lint()
	if err != nil || len(problems) > 0 || !strings.Contains(after, `bulla_selfcheck_round_age_seconds{log="log"}`) || !strings.Contains(after, `bulla_selfcheck_rounds_total{log="log"} 1`) {
		t.Errorf("%v %v\n%s", problems, err, after)
	}
	if s := a.selfCheckStatus()[0]; s.Log != "log" || s.Last == nil || s.Last.Entries != l.Size() || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}
