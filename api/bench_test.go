package api

import (
	"fmt"
	"strings"
	"testing"

	"bulla/record"
)

// BenchmarkStage is what the socket's frames cost, beside the stages in record.
func BenchmarkStage(b *testing.B) {
	b.Run("decode", benchmarkDecode)
	b.Run("acknowledge", benchmarkAcknowledge)
}

// Events of a request.
const benchBatch = 1000

// perEvent reports what an event takes.
func perEvent(b *testing.B) {
	b.ReportMetric(float64(b.N)*benchBatch/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchBatch, "ns/event")
}

// benchmarkDecode is a request from its frame, each event in it validated.
func benchmarkDecode(b *testing.B) {
	event := fmt.Sprintf(`{"actor":{"id":"alice","type":"user"},"data":{"method":"publickey","note":%q},"id":"01JD3Z1W5V9T5Z8K6Q4X2Y7B3C","outcome":"success","session_id":"s-77","src":{"ip":"192.0.2.7","port":52144},"type":"auth.login"}`, strings.Repeat("x", 90))
	frame := []byte(`{"id":1,"op":"append","events":[` + strings.TrimSuffix(strings.Repeat(event+",", benchBatch), ",") + `]}`)
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRequest(frame); err != nil {
			b.Fatal(err)
		}
	}
	perEvent(b)
}

// benchmarkAcknowledge is an answer's frame.
func benchmarkAcknowledge(b *testing.B) {
	checkpoint := "log.example/audit\n1234567\n" + strings.Repeat("A", 43) + "=\n\n— log.example/audit " + strings.Repeat("A", 100) + "\n"
	for _, c := range []struct {
		name string
		item Item
	}{{WantAck, Item{Leaf: &record.Hash{1}}}, {WantReceipt, Item{Entry: make([]byte, 650), Proof: make([]record.Hash, 20)}}} {
		b.Run(c.name, func(b *testing.B) {
			a := Answer{ID: 1, Status: StatusOK, Checkpoint: checkpoint}
			for i := range uint64(benchBatch) {
				c.item.Index = i
				a.Items = append(a.Items, c.item)
			}
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst = a.Frame(dst[:0])
			}
			b.SetBytes(int64(len(dst)))
			perEvent(b)
		})
	}
}
